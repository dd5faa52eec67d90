from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.edit_distance import edit_distance


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),  # a swap is two steps
        ("a", "A", 1),
        ("intention", "execution", 5),
    ],
)
def test_known_distances(left, right, distance):
    assert edit_distance(left, right) == edit_distance(right, left) == distance


def by_definition(left, right):
    @cache
    def of(i, j):
        if i == 0 or j == 0:
            return i + j
        steps = of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(steps)

    return of(len(left), len(right))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_it_is_the_recursive_definition(left, right):
    assert edit_distance(left, right) == by_definition(left, right)
