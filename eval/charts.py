"""Charts of a training run, as PNG files that depend on nothing but its log."""

from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.training_log import Series, TrainingRun, competing_layers
from llava_compete.report.drawing import COLOURS, WIDTH, to_png

HEIGHT = 3.0  # inches of one row of panels
FEW = 60  # points; up to so many are marked
STRONG = 1.8  # width of the line that is to be read


class Chart(NamedTuple):
    """A picture and what is to be seen in it."""

    name: str
    png: bytes
    caption: str


def charts(run: TrainingRun) -> list[Chart]:
    """The loss and, where there are experts, what their routers did."""
    drawn = [_loss(run)]
    if run.parts:
        drawn += [_router_losses(run), _load(run)]
    if any(competing_layers(run, part).steps for part in run.parts):
        drawn += [_schedule(run), _agreement(run)]
    return drawn


def _loss(run: TrainingRun) -> Chart:
    figure, (axes,) = _panels(run, 1)
    _curve(axes, run.series("loss"), 0, "loss, with router losses" if run.parts else "loss")
    if run.parts:
        _curve(axes, run.series("language"), 1, "language alone")
    axes.set_ylabel("nats a token")
    _legend(figure)
    caption = "What the training minimised, step by step."
    return Chart("loss", to_png(figure), caption + _smoothing(run))


def _router_losses(run: TrainingRun) -> Chart:
    names = run.loss_names()
    figure, panels = _panels(run, len(names))
    for axes, name in zip(panels, names, strict=True):
        for i, part in enumerate(run.parts):
            series = run.series(f"{part.name}/{name}")
            if series.steps:
                _curve(axes, series, i, part.name)
        axes.set_title(name)
    _legend(figure)
    caption = (
        "The router losses by name, before their weights: means over the layers of a part that "
        "have them, at the steps that have them."
    )
    return Chart("router-losses", to_png(figure), caption + _smoothing(run))


def _load(run: TrainingRun) -> Chart:
    figure, panels = _panels(run, len(run.parts))
    for axes, part in zip(panels, run.parts, strict=True):
        for expert in range(part.num_experts):
            _curve(axes, run.series(f"{part.name}/load/{expert}"), expert, f"expert {expert}")
        _mark(axes, 1 / part.num_experts, "even share")
        axes.set_title(part.name)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("share of the choices")
    _legend(figure)
    caption = (
        "Expert load: the share of a part's choices that went to each expert, mean over its "
        "layers. Dashed: the even share 1/E."
    )
    return Chart("load", to_png(figure), caption + _smoothing(run))


def _schedule(run: TrainingRun) -> Chart:
    figure, (axes,) = _panels(run, 1)
    below = dict.fromkeys((int(entry["step"]) for entry in run.entries), 0.0)
    for i, part in enumerate(run.parts):
        series = competing_layers(run, part)
        bottom = [below[step] for step in series.steps]
        label = f"{part.name} ({part.num_layers} with experts)"
        width = 0.8 if len(below) <= FEW else 1.0
        axes.bar(series.steps, series.values, width, bottom, color=COLOURS[i], label=label)
        for step, count in zip(series.steps, series.values, strict=True):
            below[step] += count
    axes.set_ylabel("competing layers")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure)
    caption = "The competition schedule: layers that competed at each step, one part on the other."
    return Chart("schedule", to_png(figure), caption)


def _agreement(run: TrainingRun) -> Chart:
    parts = [part for part in run.parts if competing_layers(run, part).steps]
    figure, panels = _panels(run, len(parts))
    for axes, part in zip(panels, parts, strict=True):
        series = run.series(f"{part.name}/agreement")
        axes.plot(*series, "o", color=COLOURS[0], markersize=4, alpha=0.35, label="a step")
        if len(series.steps) > 1:
            axes.plot(
                *_running_mean(series), color=COLOURS[0], label="running mean", linewidth=STRONG
            )
        _mark(axes, part.chance, "chance")
        axes.set_title(part.name)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("agreement")
    _legend(figure)
    caption = (
        "Agreement: the share of a competition's winners that the router would have chosen too, "
        "at the steps with a competition. Dashed: chance, K/E."
    )
    return Chart("agreement", to_png(figure), caption)


def _panels(run: TrainingRun, count: int) -> tuple[Figure, list[Axes]]:
    """``count`` axes over steps, three in a row at most."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, HEIGHT * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in panels:
        axes.set_xlabel("step")
        axes.set_xlim(0, run.entries[-1]["step"] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure, panels


def _curve(axes: Axes, series: Series, number: int, label: str) -> None:
    """The values, and over them, where there are many, their running mean."""
    colour = COLOURS[number % len(COLOURS)]
    if len(series.steps) <= FEW:
        axes.plot(*series, color=colour, label=label, marker="o", markersize=3, linewidth=STRONG)
        return
    axes.plot(*series, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(*_running_mean(series), color=colour, label=label, linewidth=STRONG)


def _mark(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color="black", linestyle="--", linewidth=1, label=label)


def _legend(figure: Figure) -> None:
    """One above all panels, where it hides no curve; a label that several have stands once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    handles, labels = list(found.values()), list(found)
    figure.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False)


def _running_mean(series: Series) -> Series:
    """Mean of each value and its neighbours: in all a twentieth of the series, but at least 3."""
    reach = max(1, len(series.values) // 40)
    around = (slice(max(0, i - reach), i + reach + 1) for i in range(len(series.values)))
    return Series(series.steps, [fmean(series.values[near]) for near in around])


def _smoothing(run: TrainingRun) -> str:
    return " Pale: the steps; strong: a running mean." if len(run.entries) > FEW else ""
