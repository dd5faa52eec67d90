import pytest

from eval.metrics import exact_match
from tests.eval.metrics.rows import sample, scored


@pytest.mark.parametrize(
    ("text", "right"),
    [("Red.", 1), (" red ", 1), ("RED...", 1), ("red .", 1), ("red!", 0), ("a red", 0), ("", 0)],
)
def test_exact_match_forgives_case_white_space_and_trailing_periods(text, right):
    assert exact_match.score(text, sample("red")).values == {"exact_match": right}


def test_exact_match_collapses_white_space_on_both_sides():
    assert exact_match.score("a  red\nbus", sample("A red  bus.")).values == {"exact_match": 1.0}


def test_exact_match_chance_knows_the_habit_of_each_group():
    rows = scored(exact_match, [("x", "a"), ("x", "a"), ("x", "b")], group="kind")
    rows += scored(exact_match, [("x", "c"), ("x", "d")], group="name")
    assert exact_match.aggregate(rows)["exact_match"].chance == pytest.approx((2 + 1) / 5)
    assert exact_match.aggregate(rows[:3])["exact_match"].chance == pytest.approx(2 / 3)
