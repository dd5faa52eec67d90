import pytest

from eval.metrics import mmstar
from tests.eval.metrics.rows import sample, scored


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B: a dog", "B"),
        ("banana", "B"),
        ("(B) a dog", "B"),
        ("( B)", None),
        ("(", None),
        ("Option B", "B"),
        ("option", None),
        ("option:B", None),
        ("The answer is B.", "B"),
        ("the answer is", None),
        ("The answer is: B", None),
        ("the answer is (B)", None),
        ("A dog", "A"),  # its article is a letter
        ("Because of it", "B"),
        ("E", None),
        ("I think B", None),
        ("", None),
    ],
)
def test_the_letter_stands_first_or_behind_one_of_three_beginnings(text, parsed):
    score = mmstar.score(text, sample("B", options="wxyz"))
    assert score.parsed == parsed
    assert score.values == {"accuracy": float(parsed == "B")}
    assert score.flags == (() if parsed else ("unparsed",))


def part(group, l2, right, wrong):
    pairs = [("A", "A")] * right + [("B", "A")] * wrong
    return scored(mmstar, pairs, group=group, l2_category=l2)


def test_l2_means_are_taken_inside_each_group_first():
    rows = part("math", "geometry", 1, 0) + part("math", "statistics", 1, 3)
    rows += part("logic", "code", 0, 5)
    metrics = mmstar.aggregate(rows)
    assert metrics["l2_mean"].value == pytest.approx(((1 + 0.25) / 2 + 0) / 2)
    assert metrics["accuracy"].value == pytest.approx(2 / 10)
    of_math = mmstar.aggregate([row for row in rows if row.sample.group == "math"])
    assert of_math["l2_mean"].value == pytest.approx(0.625)


def test_an_l2_category_of_two_groups_is_two_categories():
    rows = part("math", "common", 1, 0) + part("logic", "common", 0, 9)
    assert mmstar.aggregate(rows)["l2_mean"].value == pytest.approx(0.5)
