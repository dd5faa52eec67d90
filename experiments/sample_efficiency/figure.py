"""The figure: a row for each truth; Voronoi loss exact and over-specified, and the error of b."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.sample_efficiency.mixtures import Gate
from experiments.sample_efficiency.study import EXACT, OVER, Fit, Plan
from experiments.sample_efficiency.summary import Curve, Rate, curve
from llava_compete.report.drawing import COLOURS, to_png

GATE_COLOURS = dict(zip(Gate, (COLOURS[1], COLOURS[0]), strict=True))
GATE_MARKERS = dict(zip(Gate, ("s", "o"), strict=True))
# fit, loss, title, exponents of the dashed and the dotted guide.
PANELS = (
    (EXACT, "quadratic", "2 experts fitted to 2: Voronoi loss", ((-1, 2), (-1, 4))),
    (OVER, "quadratic", "3 experts fitted to 2: Voronoi loss", ((-1, 2), (-1, 4))),
    (OVER, "intercept", "3 fitted to 2: error of b in the shared cell", ((-1, 4), (-1, 8))),
)


def figure(plan: Plan, fits: list[Fit], found: list[Rate]) -> bytes:
    """PNG. Lines are medians over repeats, bands the quartiles; slopes are those of the medians."""
    drawn = Figure(figsize=(13.5, 4.3 * len(plan.settings)), layout="constrained")
    rows = drawn.subfigures(len(plan.settings), 1, squeeze=False)[:, 0]
    titles = {
        "noisy": "noisy: noise of the order of the responses",
        "sharp": "sharp: little noise",
    }
    for setting, row in zip(plan.settings, rows, strict=True):
        row.suptitle(titles[setting], fontweight="bold", x=0.01, ha="left")
        for axes, panel in zip(row.subplots(1, len(PANELS)), PANELS, strict=True):
            fit, loss, title, guides = panel
            curves = {gate: curve(fits, plan, setting, gate, fit, loss) for gate in Gate}
            for gate, of_gate in curves.items():
                slope = _slope(found, setting, fit, loss, gate)
                _draw(axes, of_gate, gate, f"{gate.value}: slope {slope}")
            _guides(axes, curves, guides)
            _dress(axes, title)
    return to_png(drawn)


def _slope(found: list[Rate], setting: str, fit: str, loss: str, gate: Gate) -> str:
    key = (setting, fit, loss, "median", "all")
    rate = next(r for r in found if (r.setting, r.fit, r.loss, r.statistic, r.span) == key)
    return str(getattr(rate, gate.value))


def _draw(axes: Axes, curve: Curve, gate: Gate, label: str) -> None:
    low_S, middle_S, high_S = np.quantile(curve.losses_SR, (0.25, 0.5, 0.75), axis=1)
    colour = GATE_COLOURS[gate]
    axes.fill_between(curve.sizes_S, low_S, high_S, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        curve.sizes_S,
        middle_S,
        color=colour,
        marker=GATE_MARKERS[gate],
        markersize=5,
        linewidth=1.8,
        label=label,
    )


def _guides(axes: Axes, curves: dict[Gate, Curve], exponents: tuple[tuple[int, int], ...]) -> None:
    """Straight lines of known slope that end where a median does, at the largest size."""
    for gate, of_gate in curves.items():
        sizes_S = of_gate.sizes_S
        last = float(np.median(of_gate.losses_SR[-1]))
        for (top, bottom), style in zip(exponents, ("--", ":"), strict=True):
            line_S = last * (sizes_S / sizes_S[-1]) ** (top / bottom)
            label = f"{top}/{bottom}" if gate is Gate.SOFTMAX else None
            axes.plot(sizes_S, line_S, style, color="0.45", linewidth=1, label=label, zorder=1)


def _dress(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("sample size n")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(
        title=title,
        title_fontsize=11,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(-0.03, 1.0),
        ncols=2,
        columnspacing=1.0,
        handlelength=1.6,
        frameon=False,
        fontsize=8.5,
    )
