"""Means over seeds, and differences to the reference that are paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.metrics.statistics import mean, paired_difference

LEVEL = 0.95
# Two-sided 95 % points of Student's t for 1, 2, ... 30 degrees of freedom.
T_POINTS = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
T_BEYOND = T_POINTS[-1]  # a little too wide for more degrees of freedom


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; None for a single seed."""

    mean: float
    sd: float | None
    n: int


class Difference(NamedTuple):
    """Mean of the paired differences and half of its t interval; None for a single seed."""

    mean: float
    half: float | None
    n: int

    @property
    def carried(self) -> bool:
        """Does the interval exclude 0?

        Not one of no width: scores that move by whole answers may differ by the same answer in
        every seed, and a spread that was not seen, up to rounding, carries nothing.
        """
        return self.half is not None and 1e-9 * abs(self.mean) < self.half < abs(self.mean)


def spread(values: Sequence[float]) -> Spread:
    """Over the seeds' values."""
    found = mean(values)
    sd = None if found.stderr is None else found.stderr * math.sqrt(found.n)
    return Spread(found.value, sd, found.n)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Of ``values`` less ``reference``, by seed; both have the same seeds.

    Interval: Student's t with n - 1 degrees of freedom, which takes the differences of seeds as
    normal and independent.
    """
    if values.keys() != reference.keys():
        raise ValueError(f"seeds {sorted(values)} cannot be paired with {sorted(reference)}")
    pairs = [(values[seed], reference[seed]) for seed in sorted(values)]
    found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    if found.stderr is None:
        return Difference(found.value, None, found.n)
    point = T_POINTS[found.n - 2] if found.n - 2 < len(T_POINTS) else T_BEYOND
    return Difference(found.value, point * found.stderr, found.n)
