"""The comparison as a picture: what a router is worth, what it costs, what it does."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.compare.settings import REFERENCE
from experiments.compare.summary import LOSS, Row
from llava_compete.report.drawing import COLOURS, WIDTH

BLUE, RED, GREEN, GREY = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[6]
ROW_HEIGHT = 0.3  # inches
LINEAR = 0.1  # nats; differences up to this are drawn to scale


def figure(rows: Sequence[Row]) -> Figure:
    """Routers in the order of the table, one a line; panels share the lines.

    Grey: a difference that the spread does not carry.
    """
    drawn = Figure(figsize=(WIDTH * 1.25, 1.5 + ROW_HEIGHT * len(rows)), layout="constrained")
    panels = drawn.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    _differences(panels[0], rows)
    _costs(panels[1], rows)
    _routing(panels[2], rows)
    for axes in panels:
        axes.set_yticks(range(len(rows)), [row.router for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    # Below all panels, where it hides no bar.
    drawn.legend(loc="outside lower right", ncols=4, frameon=False, fontsize="small")
    return drawn


def _differences(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvline(0, color="black", linewidth=1)
    reference = next(row for row in rows if row.router == REFERENCE).by_seed[LOSS]
    for place, row in enumerate(rows):
        if row.router == REFERENCE:
            continue
        found = row.differences[LOSS]
        colour = GREY if not found.carried else BLUE if found.mean < 0 else RED
        points = [value - reference[seed] for seed, value in row.by_seed[LOSS].items()]
        axes.plot(points, [place] * len(points), "o", color=colour, alpha=0.4, markersize=4)
        axes.errorbar(found.mean, place, xerr=found.half, color=colour, fmt="|", capsize=3)
    axes.set_title(f"held-out loss - {REFERENCE}'s (lower is better)", fontsize="medium")
    # Some routers start far from the upcycled model; the others would all be one line.
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        f"nats a token, linear to {LINEAR}, then logarithmic\n"
        f"dots: seeds; bars: 95 % intervals; grey: holds 0"
    )


def _costs(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axvline(1, color="black", linewidth=1)
    for place, row in enumerate(rows):
        cost = row.cost
        ends = [[cost.seconds - cost.seconds_low], [cost.seconds_high - cost.seconds]]
        label = "seconds a step" if place == 0 else None
        axes.errorbar(
            cost.seconds, place - 0.12, xerr=ends, color=BLUE, fmt="o", markersize=4, label=label
        )
        label = "memory" if place == 0 else None
        axes.plot(cost.memory, place + 0.12, "s", color=GREEN, markersize=4, label=label)
    axes.set_title(f"cost, as a multiple of {REFERENCE}'s", fontsize="medium")
    axes.set_xlabel("bars: lowest to\nhighest round")


def _routing(axes: Axes, rows: Sequence[Row]) -> None:
    marks = {"entropy": ("load entropy", "o", BLUE), "agreement": ("agreement", "D", RED)}
    parts = dict.fromkeys(key.split("/")[0] for row in rows for key in row.figures if "/" in key)
    for place, row in enumerate(rows):
        for name, (text, marker, colour) in marks.items():
            found = [row.figures[key] for part in parts if (key := f"{part}/{name}") in row.figures]
            for of_part in found:
                label = text if place == 0 and of_part is found[0] else None
                axes.errorbar(
                    of_part.mean,
                    place,
                    xerr=of_part.sd,
                    color=colour,
                    fmt=marker,
                    markersize=4,
                    label=label,
                )
    axes.set_xlim(0, 1.05)
    axes.set_title("routing on held-out questions", fontsize="medium")
    axes.set_xlabel("mean over layers\nbars: deviation over seeds")
