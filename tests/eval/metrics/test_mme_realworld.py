import pytest

from eval.metrics import mme_realworld
from tests.eval.metrics.rows import sample, scored

OPTIONS = ("a red car", "the bus", "nothing", "two dogs", "not in the picture")


@pytest.mark.parametrize(
    ("text", "parsed", "flags"),
    [
        ("C", "C", ()),
        ("(C) nothing", "C", ()),
        ("The best answer is C", "C", ()),
        ("The correct answer is: D.", "D", ()),
        ("The answer is A", "A", ()),
        ("The answer: B", "B", ()),
        ("The best option is C", "C", ()),  # not deleted, but no capital A to E in it
        ("Best answer: C", "B", ()),  # the B of Best: the phrase is not deleted
        ("Best option: C", "B", ()),
        ("Because it is C", "B", ()),
        ("An owl, so D", "A", ()),
        ("c", "A", ("no_letter",)),  # inside "(A) a red car"
        ("the bus", "B", ("no_letter",)),
        ("two", "D", ("no_letter",)),
        ("The answer is two", "D", ("no_letter",)),
        ("", "A", ("no_letter",)),  # the empty text stands inside every option
        ("The answer is", "A", ("no_letter",)),
        ("unclear", None, ("unparsed",)),
        ("one two three four five six seven eight nine ten x", None, ("unparsed",)),
        ("one two three four five six seven eight nine C x y", "C", ()),
    ],
)
def test_the_first_capital_counts_else_the_text_of_an_option(text, parsed, flags):
    score = mme_realworld.score(text, sample("C", options=OPTIONS))
    assert score.parsed == parsed
    assert score.values == {"accuracy": float(parsed == "C")}
    assert score.flags == flags


@pytest.mark.parametrize(
    ("text", "parsed"), [("c", "C"), ("the bus", None), ("(d", "D"), ("", "A"), ("C", "C")]
)
def test_lmms_looks_inside_the_letters_alone(text, parsed):
    score = mme_realworld.RULES["lmms"].score(text, sample("C", options=OPTIONS))
    assert score.parsed == parsed


def test_accuracy_over_all_and_by_task():
    rows = scored(mme_realworld, [("A", "A"), ("A", "B")], options=OPTIONS, task="Perception")
    rows += scored(mme_realworld, [("A", "A")], options=OPTIONS, task="Reasoning")
    metrics = mme_realworld.aggregate(rows)
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    assert metrics["accuracy_perception"].value == pytest.approx(1 / 2)
    assert metrics["accuracy_reasoning"].value == pytest.approx(1)
