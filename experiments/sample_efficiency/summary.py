"""Fits -> curves over sample size with their slopes, and how the gates differ."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.sample_efficiency.mixtures import Gate
from experiments.sample_efficiency.slopes import Floats, Slope, resampled_slope
from experiments.sample_efficiency.study import EXACT, OVER, Fit, Plan

# Losses of each fit: those of the parameters, that of the density, and what moves in a shared cell.
LOSSES = {
    EXACT: ("quadratic", "total_variation"),
    OVER: (
        "quadratic",
        "polynomial",
        "total_variation",
        "tilt",
        "slope",
        "intercept",
        "sigma",
    ),
}
STATISTICS = ("mean", "median")
SPANS = ("all", "upper")  # all sizes; the upper half of them


class Curve(NamedTuple):
    """A loss over the sizes: a row for each size, a column for each repeat."""

    sizes_S: Floats
    losses_SR: Floats

    def span(self, name: str) -> "Curve":
        sizes = len(self.sizes_S)
        start = {"all": 0, "upper": min(sizes // 2, sizes - 2)}[name]
        return Curve(self.sizes_S[start:], self.losses_SR[start:])


class Rate(NamedTuple):
    """Slopes of one loss by gate; ``difference`` is competition minus softmax."""

    setting: str
    fit: str
    loss: str
    statistic: str
    span: str
    first_size: int
    softmax: Slope | None  # None: the gate has no such parameter
    competition: Slope | None
    difference: Slope | None


def curve(fits: list[Fit], plan: Plan, setting: str, gate: Gate, fit: str, loss: str) -> Curve:
    """The named loss of the fits, in the order of the plan."""
    losses = [
        getattr(each, loss)
        for each in fits
        if (each.setting, each.gate, each.fit) == (setting, gate.value, fit)
    ]
    losses_SR = np.array(losses).reshape(len(plan.sizes), plan.repeats)
    return Curve(np.array(plan.sizes, dtype=np.float64), losses_SR)


def rates(fits: list[Fit], plan: Plan) -> Iterator[Rate]:
    """Slopes of every loss by setting, fit and statistic, over all sizes and the upper half."""
    for setting in plan.settings:
        for fit, losses in LOSSES.items():
            for loss in losses:
                curves = {gate: curve(fits, plan, setting, gate, fit, loss) for gate in Gate}
                for statistic in STATISTICS:
                    for span in SPANS:
                        part = {gate: whole.span(span) for gate, whole in curves.items()}
                        yield _rate(setting, fit, loss, statistic, span, part, plan.seed)


def _rate(
    setting: str,
    fit: str,
    loss: str,
    statistic: str,
    span: str,
    curves: dict[Gate, Curve],
    seed: int,
) -> Rate:
    slopes = {
        gate: resampled_slope(*curves[gate], statistic, seed + number)
        for number, gate in enumerate(Gate)
        if not (gate is Gate.COMPETITION and loss == "tilt")
    }
    intervals = {gate: slope.interval() for gate, slope in slopes.items()}
    both = len(slopes) == 2
    return Rate(
        setting=setting,
        fit=fit,
        loss=loss,
        statistic=statistic,
        span=span,
        first_size=int(curves[Gate.SOFTMAX].sizes_S[0]),
        softmax=intervals.get(Gate.SOFTMAX),
        competition=intervals.get(Gate.COMPETITION),
        difference=slopes[Gate.COMPETITION].minus(slopes[Gate.SOFTMAX]) if both else None,
    )
