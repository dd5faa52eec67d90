"""Rates: slopes of a loss against the sample size on logarithmic axes, with bootstrap intervals.

S sizes, R repeats, B bootstrap draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95

Floats = NDArray[np.float64]


class Slope(NamedTuple):
    """A slope and the ends of its percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Resampled(NamedTuple):
    """The slope of the data and those of the bootstrap draws."""

    value: float
    draws_B: Floats

    def interval(self) -> Slope:
        ends = np.quantile(self.draws_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Slope(self.value, float(ends[0]), float(ends[1]))

    def minus(self, other: "Resampled") -> Slope:
        """The difference of two slopes of independent data."""
        return Resampled(self.value - other.value, self.draws_B - other.draws_B).interval()


def log_log_slope(sizes_S: Floats, loss_XS: Floats) -> Floats:
    """Least-squares slope of log loss on log size along the last axis; leading axes are kept."""
    if len(sizes_S) < 2:
        raise ValueError(f"{len(sizes_S)} sample sizes have no slope: give two or more")
    if not (loss_XS > 0).all():
        raise ValueError(f"a loss of {loss_XS.min()} has no logarithm")
    x_S = np.log(sizes_S) - np.log(sizes_S).mean()
    slope: Floats = np.log(loss_XS) @ x_S / (x_S @ x_S)
    return slope


def resampled_slope(sizes_S: Floats, losses_SR: Floats, statistic: str, seed: int) -> Resampled:
    """Slope of the "mean" or "median" over repeats; the bootstrap draws repeats at each size."""
    summaries: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}
    summarise = summaries[statistic]
    generator = np.random.default_rng(seed)
    sizes, repeats = losses_SR.shape
    picks_SBR = generator.integers(repeats, size=(sizes, DRAWS, repeats))
    drawn_SBR = losses_SR[np.arange(sizes)[:, None, None], picks_SBR]
    draws_B = log_log_slope(sizes_S, summarise(drawn_SBR, axis=2).T)
    return Resampled(float(log_log_slope(sizes_S, summarise(losses_SR, axis=1))), draws_B)
