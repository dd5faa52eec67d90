"""The picture of `python -m benchmarks scaling`: measured layer times, a modelled step."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cost import expert_parallel_traffic, expert_traffic, operations
from benchmarks.scaling_tables import (
    ASSUMED,
    BASE,
    LANGUAGE,
    SEVEN,
    Line,
    at,
    fit,
    points,
    real_models,
    zero_sends,
)
from llava_compete.report.drawing import COLOURS, WIDTH

RANKS = 32
ROWS = (1, 2, 4, 8, 16, 32)


def draw(curves: Path, path: Path) -> None:
    """One panel for each measured axis, and one for the modelled step of a large model."""
    measured = points(curves)
    line = fit(measured)
    figure = Figure(figsize=(1.3 * WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, len(measured) + 1)
    for axes, (axis, curve) in zip(panels, measured.items(), strict=False):
        _layer(axes, axis, curve, line)
    _step(panels[-1])
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "scaling"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _layer(axes: Axes, axis: str, curve: dict[int, float], line: Line) -> None:
    places = list(curve)
    axes.plot(places, [1e3 * s for s in curve.values()], "o", color=COLOURS[0], label="measured")
    modelled = [1e3 * line(at(axis, place)) for place in places]
    axes.plot(places, modelled, color=COLOURS[1], label="a T K + b E")
    products = [1e3 * replace(line, expert=0.0)(at(axis, place)) for place in places]
    axes.plot(places, products, "--", color=COLOURS[6], label="a T K")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(axis)
    axes.set_ylabel("ms of a layer, forward and backward")


def _step(axes: Axes) -> None:
    config = real_models()[SEVEN]
    parallel = config.moe_configs[LANGUAGE].num_experts
    loads = [replace(BASE, rows=number, ranks=RANKS) for number in ROWS]
    tokens = [load.tokens for load in loads]
    compute = [operations(config, load).mean / ASSUMED.flops for load in loads]
    gathered = np.array([zero_sends("zero3", config, load) for load in loads])
    spread = [
        whole - expert_traffic(config, load) + expert_parallel_traffic(config, load, parallel)
        for whole, load in zip(gathered, loads, strict=True)
    ]
    axes.plot(tokens, compute, color=COLOURS[0], label="compute")
    axes.plot(tokens, gathered / ASSUMED.network, color=COLOURS[1], label="ZeRO-3, 400 Gb/s")
    axes.plot(tokens, gathered / ASSUMED.nvlink, color=COLOURS[4], label="ZeRO-3, NVLink")
    axes.plot(
        tokens, np.array(spread) / ASSUMED.network, "--", color=COLOURS[2], label="experts apart"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(tokens, [f"{place // 1024}k" for place in tokens])
    axes.set_title(f"{SEVEN}, {RANKS} GPUs", fontsize="small")
    axes.set_xlabel("tokens of a GPU")
    axes.set_ylabel("s of a step, modelled")
