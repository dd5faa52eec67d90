import pytest

from eval.metrics import mathvista
from tests.eval.metrics.rows import row, sample, value

SHARES = ("3/11", "8/11", "6/11", "3/5")


def choice(reference, options=SHARES):
    meta = {"question_type": "multi_choice", "answer_type": "text", "precision": None}
    return sample(reference, options=options, **meta)


def free(reference, answer_type, precision=None):
    meta = {"question_type": "free_form", "answer_type": answer_type, "precision": precision}
    return sample(reference, **meta)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("8/11", "8/11"),
        ("B", "8/11"),
        ("(B)", "8/11"),
        ("B.", "8/11"),
        ("(B) 8/11", "8/11"),
        ("(b) eight elevenths", "8/11"),
        ("(B) or (C)", "8/11"),
        (' The answer is "8/11".', "8/11"),
        ('The answer is "8/12".', "8/11"),  # the nearest choice
        ('The answer is "(C) or so".', "6/11"),
        ('The answer is "x".', "3/5"),  # three steps away, the others are four
        ("b", None),
        ("E", None),  # no choice
        ("(E) none", None),
        ("The answer is B", None),
        ("The correct answer is (B) 8/11.", None),
        ("8 / 11", None),
        ('The answer is " ".', None),
        ("", None),
    ],
)
def test_choices_that_a_rule_can_extract(text, parsed):
    score = mathvista.score(text, choice("8/11"))
    assert score.parsed == parsed
    assert value(score) == (parsed == "8/11")
    assert score.flags == (() if parsed else ("unparsed",))


def test_of_equally_near_choices_the_first_is_taken():
    assert mathvista.normalise("c", choice("a", options=("a", "b"))) == "a"


@pytest.mark.parametrize(
    ("text", "answer_type", "precision", "parsed"),
    [
        ("14", "integer", None, "14"),
        (" 14 ", "integer", None, "14"),
        ("-3", "integer", None, "-3"),
        ("014", "integer", None, "14"),
        ("14.0", "integer", None, None),  # int() does not read it: for the judge
        ("1,000", "integer", None, None),
        ("14 cm", "integer", None, None),
        ('The answer is "14.7".', "integer", None, "14"),  # cut, not rounded
        ('The answer is "many".', "integer", None, None),
        ('The answer is "inf".', "integer", None, None),
        ("9" * 400, "integer", None, None),  # more than a float can hold
        ("1.45", "float", 2, "1.45"),
        ("1.456", "float", 2, "1.46"),
        ("1.5", "float", 2, "1.5"),
        ("2", "float", 1, "2.0"),
        ("0.25", "float", 1, "0.2"),  # round half to even
        ("1e2", "float", 1.0, "100.0"),
        ("$1.45", "float", 2, None),
        ("[2007, 2008]", "list", None, "[2007, 2008]"),
        ("2007, 2008", "list", None, None),
        ('The answer is "yes".', "text", None, "yes"),
        ("yes", "text", None, None),
    ],
)
def test_numbers_and_lists_that_a_rule_can_extract(text, answer_type, precision, parsed):
    score = mathvista.score(text, free("x", answer_type, precision))
    assert score.parsed == parsed
    assert score.flags == (() if parsed else ("unparsed",))


@pytest.mark.parametrize(
    ("text", "reference", "answer_type", "precision", "right"),
    [
        ("14", "14", "integer", None, 1),
        ("15", "14", "integer", None, 0),
        ("1.449", "1.45", "float", 2, 1),
        ("1.5", "1.50", "float", 2, 0),  # texts are compared
        ("[1, 2]", "[1, 2]", "list", None, 1),
        ("[1,2]", "[1, 2]", "list", None, 0),
    ],
)
def test_the_normalised_text_is_compared(text, reference, answer_type, precision, right):
    assert value(mathvista.score(text, free(reference, answer_type, precision))) == right


def test_the_metric_says_that_it_is_by_rule():
    rows = [row(mathvista, text, free("1", "integer")) for text in ("1", "2", "one", "1")]
    metrics = mathvista.aggregate(rows)
    assert list(metrics) == ["rule_accuracy"]
    assert metrics["rule_accuracy"].value == 0.5
