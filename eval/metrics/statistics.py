"""Means, their standard errors, and what a model that never looks would reach."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over ``n`` values; ``stderr`` is None for fewer than two."""

    value: float
    stderr: float | None
    n: int


def proportion_stderr(share: float, n: int) -> float:
    """Standard error of a share of ``n`` yes-or-no outcomes: sqrt(p (1 - p) / n)."""
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"share={share} of n={n}: a share in 0..1 of at least one is needed")
    return math.sqrt(share * (1 - share) / n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean and its standard error, the sample deviation over sqrt(n)."""
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values was asked for")
    value = math.fsum(values) / n
    if n == 1:
        return Estimate(value, None, n)
    variance = math.fsum((x - value) ** 2 for x in values) / (n - 1)
    return Estimate(value, math.sqrt(variance / n), n)


def paired_difference(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """Mean of ``left - right`` over the same samples.

    The standard error is that of the differences: a question that is hard on both sides adds
    nothing to it, which is why it is smaller than the two separate errors suggest.
    """
    return mean([a - b for a, b in zip(left, right, strict=True)])


def majority_share(labels: Sequence[str]) -> float:
    """The share of right answers of a model that always gives the commonest label."""
    if not labels:
        raise ValueError("the majority of no labels was asked for")
    return Counter(labels).most_common(1)[0][1] / len(labels)


def uniform_share(numbers_of_options: Sequence[int]) -> float:
    """The expected share of right answers of a model that guesses evenly among the options."""
    if not numbers_of_options or min(numbers_of_options) < 1:
        raise ValueError(f"numbers of options {list(numbers_of_options)[:5]} must all be above 0")
    return math.fsum(1 / number for number in numbers_of_options) / len(numbers_of_options)
