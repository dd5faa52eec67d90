import pytest

from eval.metrics import ai2d
from tests.eval.metrics.rows import sample, scored

OPTIONS = ("sun", "moon", "star", "sky")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("B. moon", "B"),
        ("B.moon", "B"),
        ("(B)", "B"),
        ("B!", "B"),
        ("(b).", "B"),
        ("b. moon", None),
        ("B moon", None),
        ("B) moon", None),
        ("moon", None),
        ("The answer is B.", None),
        ("( B )", None),
        ("F", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_capital_and_a_period_or_the_letter_but_for_case_and_punctuation(text, parsed):
    score = ai2d.score(text, sample("B", options=OPTIONS))
    assert score.parsed == parsed
    assert score.values == {"accuracy": float(parsed == "B")}
    assert score.flags == (() if parsed else ("unparsed",))


def test_a_leading_letter_that_is_not_offered_is_flagged_apart():
    assert ai2d.score("Z. moon", sample("B", options=OPTIONS)).flags == ("not_offered",)


def test_accuracy_and_chance():
    rows = scored(ai2d, [("A.", "A"), ("b", "B"), ("c", "D"), ("", "C")], options=OPTIONS)
    metric = ai2d.aggregate(rows)["accuracy"]
    assert (metric.value, metric.chance) == (0.5, 0.25)
