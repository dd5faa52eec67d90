"""Time of a router step against the number of experts and against the number of tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ceiling import Floor
from benchmarks.measure import interleaved, paired, summary
from benchmarks.moe_cases import CANDIDATES, Case, source
from benchmarks.steps import Seconds, Step, group_sizes
from llava_compete.report.drawing import COLOURS, WIDTH, to_png

SHOWN = ("ours, compiled", "ours", "looped")
PRODUCTS = "products alone"
EXPERTS = (4, 8, 16, 32, 64, 128)
TOKENS = (512, 1024, 2048, 4096, 8192)


def curves(device: torch.device, rounds: int, *, quick: bool) -> dict[str, Any]:
    """By name of the axis, candidate and place on the axis: seconds, forward and backward.

    All places of an axis take turns; ``over_first``: times the first place's of the same round.
    """
    base = Case(width=64, hidden=96, tokens=256) if quick else Case()
    places = 2 if quick else None
    found = {}
    for tokens in (base.tokens, 4 * base.tokens):
        cases = [replace(base, experts=number, tokens=tokens) for number in EXPERTS[:places]]
        found[f"experts, {tokens} tokens"] = _curve(cases, "experts", device, rounds)
    cases = [replace(base, tokens=number) for number in TOKENS[:places]]
    found[f"tokens, {base.experts} experts"] = _curve(cases, "tokens", device, rounds)
    return found


def _curve(cases: list[Case], axis: str, device: torch.device, rounds: int) -> dict[str, Any]:
    runs: dict[str, Callable[[], Seconds]] = {}
    shown = [name for name in SHOWN if CANDIDATES[name].stands(cases[0])]
    for case in cases:
        given = source(case, device)
        for name in shown:
            runs[f"{name} {case.name}"] = Step(CANDIDATES[name].build(given, case), case, device)
        sizes = group_sizes(given.layer, case, device)
        runs[f"{PRODUCTS} {case.name}"] = Floor(case, sizes, device)
    taken = {
        name: [each.both for each in values] for name, values in interleaved(runs, rounds).items()
    }
    return {
        name: {
            getattr(case, axis): {
                "seconds": summary(taken[f"{name} {case.name}"]),
                "over_first": paired(
                    taken[f"{name} {case.name}"], taken[f"{name} {cases[0].name}"]
                ),
            }
            for case in cases
        }
        for name in (*shown, PRODUCTS)
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """The curves side by side as a PNG; axes of powers of two."""
    figure = Figure(figsize=(1.25 * WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found))
    for axes, (axis, curve) in zip(panels, found.items(), strict=True):
        _panel(axes, axis, curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_png(figure))


def _panel(axes: Axes, axis: str, curve: dict[str, Any]) -> None:
    for colour, (name, points) in zip(COLOURS, curve.items(), strict=False):
        places = [int(place) for place in points]  # text in a run's JSON
        medians = [1e3 * point["seconds"]["median"] for point in points.values()]
        axes.plot(places, medians, "o-", color=colour, ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(axis)
    axes.set_ylabel("ms, forward and backward")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
