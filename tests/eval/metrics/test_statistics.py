import math

import pytest

from eval.metrics import statistics


def test_paired_error_ignores_what_both_sides_share():
    left, right = [1.0, 5.0, 9.0, 2.0], [0.0, 4.0, 8.0, 1.0]
    difference = statistics.paired_difference(left, right)
    assert difference == (1.0, 0.0, 4)
    assert statistics.mean(left).stderr > 1


def test_mean_and_its_error_by_hand():
    assert statistics.mean([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7 / 3)), 3)
    assert statistics.mean([4.0]) == (4.0, None, 1)


def test_paired_difference_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="shorter"):
        statistics.paired_difference([1.0, 2.0], [1.0])


def test_chance_levels():
    assert statistics.majority_share(["a", "b", "b", "c"]) == 0.5
    assert statistics.uniform_share([2, 4]) == 0.375
    assert statistics.proportion_stderr(0.5, 100) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean([]),
        lambda: statistics.majority_share([]),
        lambda: statistics.uniform_share([0]),
        lambda: statistics.proportion_stderr(1.5, 3),
    ],
)
def test_statistics_of_nothing_are_refused(call):
    with pytest.raises(ValueError):  # noqa: PT011 (four messages)
        call()
