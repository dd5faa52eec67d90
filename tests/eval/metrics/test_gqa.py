import pytest

from eval.metrics import gqa
from tests.eval.metrics.rows import sample, scored, value


@pytest.mark.parametrize(
    ("text", "reference", "official", "lmms"),
    [
        ("red", "red", 1, 1),
        ("Red.", "red", 1, 1),
        ("RED...", "red", 1, 1),
        (" red\n", "red", 1, 1),
        ("red!", "red", 0, 1),
        ("red .", "red", 0, 0),  # the space before the period stays
        (".red", "red", 0, 1),
        ("t-shirt", "tshirt", 0, 1),
        ("tshirt", "t-shirt", 0, 1),
        ("the red", "red", 0, 0),
        ("traffic  light", "traffic light", 0, 0),
        ("yes, it is", "yes it is", 0, 1),
        ("red", "Red", 0, 1),  # the reference is taken as it is
        ("", "red", 0, 0),
    ],
)
def test_exact_match_by_the_official_rule_and_by_lmms(text, reference, official, lmms):
    assert value(gqa.score(text, sample(reference))) == official
    assert value(gqa.RULES["lmms"].score(text, sample(reference))) == lmms
    assert gqa.RULES["libmoe"] == gqa.RULES["lmms"]


def test_the_share_of_right_answers():
    rows = scored(gqa, [("Red.", "red"), ("red", "blue"), ("x", "blue"), ("y", "blue")])
    metric = gqa.aggregate(rows)["exact_match"]
    assert (metric.value, metric.n, metric.chance) == (0.25, 4, 0.75)
