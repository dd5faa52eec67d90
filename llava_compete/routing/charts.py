"""Charts of routing figures (collect.figures), as PNG files.

E experts, g x g patches a picture.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch as LegendPatch
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from llava_compete.report.drawing import (
    COLOURS,
    LESS_OR_MORE,
    MORE,
    WIDTH,
    many_colours,
    to_png,
)
from llava_compete.routing.watch import KINDS

Figures = dict[str, Any]  # of a part: router, num_experts, top_k, layers

KIND_COLOURS = dict(zip(KINDS, COLOURS, strict=False))
MOST_CELLS = 16  # numbers stand in the cells of a map of so many columns
MOST_LAYERS = 10  # of which a matrix is drawn, evenly spread
COLUMNS = 5  # matrices side by side
MAP_LAYERS = 5  # whose choices are laid over a picture
MOST_MAPS = 6  # pictures side by side


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, first and last among them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def kinds_of(part: Figures) -> list[str]:
    """The kinds of token that any layer saw, in the order of KINDS."""
    return [kind for kind in KINDS if any(kind in layer["kinds"] for layer in part["layers"])]


def load_chart(part: Figures) -> bytes:
    """Load by layer and expert, a panel for each kind of token; white is the even share 1/E."""
    kinds, layers, experts = kinds_of(part), part["layers"], part["num_experts"]
    height = 1.15 + 0.3 * len(layers)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    # As many columns as there are kinds, so that cells of every part are of one size.
    panels = [figure.add_subplot(1, len(KINDS), place + 1) for place in range(len(kinds))]
    for axes, kind in zip(panels, kinds, strict=True):
        load_LE = np.array(
            [layer["kinds"].get(kind, {"load": [math.nan] * experts})["load"] for layer in layers],
            dtype=float,
        )
        image = axes.imshow(load_LE, cmap=LESS_OR_MORE, vmin=0, vmax=2 / experts, aspect="auto")
        _write_cells(axes, image, load_LE, "{:.0%}")
        axes.set_title(kind)
        axes.set_xlabel("expert")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axes.set_yticks(range(len(layers)), [layer["layer"] for layer in layers])
        _bare(axes)
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=panels, ticks=[0, 1 / experts, 2 / experts], extend="max")
    bar.ax.set_yticklabels(["0", "1/E", "2/E"])
    bar.outline.set_visible(False)
    return to_png(figure)


CURVES = (
    ("agreement", "agreement with the competition"),
    ("relative_margin", "margin / range of scores"),
    ("entropy", "entropy of the load / log E"),
    ("drop_top1", "change without the first expert"),
    ("gap", "gap between image and text loads"),
    ("changed", "tokens with other experts than before"),
)


def curves_chart(part: Figures) -> bytes:
    """What changes with depth: a panel for each figure, a line for each kind of token."""
    layers = part["layers"]
    shown = [(name, title) for name, title in CURVES if _series(part, name)]
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(WIDTH, 2.75 * rows), layout="constrained")
    for place, (name, title) in enumerate(shown):
        axes = figure.add_subplot(rows, 3, place + 1)
        for kind, values in _series(part, name).items():
            colour = KIND_COLOURS.get(kind, COLOURS[-1])
            axes.plot(values, color=colour, label=kind, marker="o", markersize=3.5, linewidth=1.8)
        if name == "agreement":
            _chance(axes, part)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(layers)), [layer["layer"] for layer in layers])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        axes.xaxis.set_major_formatter(_layer_name(layers))
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False)
    return to_png(figure)


def _series(part: Figures, name: str) -> dict[str, list[float]]:
    """By kind the figure of each layer, NaN where it has none; empty where no layer has one."""
    layers = [layer["kinds"] for layer in part["layers"]]
    if name == "gap":
        found = {"image and text": [layer["gap"] for layer in part["layers"]]}
    else:
        found = {
            kind: [kinds.get(kind, {name: None})[name] for kinds in layers]
            for kind in kinds_of(part)
        }
    return {
        kind: [math.nan if value is None else value for value in values]
        for kind, values in found.items()
        if any(value is not None for value in values)
    }


def _chance(axes: Axes, part: Figures) -> None:
    """Dashed what two choices have in common that know nothing of each other; dotted by kind
    what they have in common by their loads alone."""
    for kind, values in _series(part, "agreement_shuffled").items():
        axes.plot(values, color=KIND_COLOURS[kind], linestyle=":", linewidth=1)
    axes.plot([], [], color="black", linestyle=":", linewidth=1, label="by loads alone")
    chance = [value for values in _series(part, "chance").values() for value in values]
    axes.axhline(
        float(np.nanmean(chance)), color="black", linestyle="--", linewidth=1, label="chance"
    )


def matrices_of(part: Figures) -> list[str]:
    """The matrices that say something: one expert has no other, one choice no company."""
    if part["num_experts"] == 1:
        return []
    return ["similarity"] if part["top_k"] == 1 else ["coactivation", "similarity"]


def matrices_chart(part: Figures, name: str) -> bytes:
    """``coactivation`` or ``similarity``, a panel for each layer (MOST_LAYERS of them)."""
    layers = [layer for layer in spread(part["layers"], MOST_LAYERS) if layer["kinds"]]
    rows = -(-len(layers) // COLUMNS)
    matrices = [_without_diagonal(layer["kinds"]["all"][name]) for layer in layers]
    experts = part["num_experts"]
    if name == "coactivation":
        even = (part["top_k"] - 1) / (experts - 1)
        style: dict[str, Any] = {"cmap": LESS_OR_MORE, "vmin": 0, "vmax": 2 * even}
    else:
        low = min(float(np.nanmin(matrix_EE)) for matrix_EE in matrices)
        style = {"cmap": MORE, "vmin": low, "vmax": max(low + 1e-6, 1)}
    figure = Figure(figsize=(WIDTH, 2.0 * rows + 0.2), layout="constrained")
    for place, (layer, matrix_EE) in enumerate(zip(layers, matrices, strict=True)):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        image = axes.imshow(matrix_EE, **style)
        _write_cells(axes, image, matrix_EE, "{:.3f}" if style["vmin"] > 0.9 else "{:.2f}", most=5)
        axes.set_title(f"layer {layer['layer']}", fontsize=9)
        axes.set_xticks(range(experts) if experts <= MOST_CELLS else [])
        axes.set_yticks(range(experts) if experts <= MOST_CELLS else [])
        _bare(axes)
    return to_png(figure)


def maps_chart(
    maps: Sequence[Figures],
    part: str,
    names: Sequence[int],
    experts: int,
    open_: Callable[[str], Image],
) -> bytes:
    """Pictures side by side, and below at some layers their patches in their first expert's colour.

    ``open_`` gives the square picture of a file; ``names`` are those of the part's layers.
    """
    places = spread(range(len(names)), MAP_LAYERS)
    side = WIDTH / MOST_MAPS
    figure = Figure(figsize=(WIDTH, side * (len(places) + 1) + 0.4), layout="constrained")
    colours = many_colours(experts)
    grid = figure.add_gridspec(len(places) + 1, MOST_MAPS)
    for column, found in enumerate(maps[:MOST_MAPS]):
        picture = open_(found["file"])
        images = [np.asarray(picture)]
        images += [_coloured(picture, found["first"][part][place], colours) for place in places]
        for row, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#d5dae1")
            if row and not column:
                axes.set_ylabel(f"layer {names[places[row - 1]]}", fontsize=9)
    if experts <= MOST_CELLS:
        handles = [LegendPatch(color=colours[e], label=f"expert {e}") for e in range(experts)]
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False)
    return to_png(figure)


def _coloured(picture: Image, first_P: Sequence[int], colours: Sequence[str]) -> np.ndarray:
    """The picture's light and dark in the colours of its patches' experts; -1 stays grey."""
    light_HW1 = np.asarray(picture.convert("L"), dtype=float)[..., None] / 255
    side = math.isqrt(len(first_P))
    of_pixel = np.arange(picture.width) * side // picture.width
    first_HW = np.reshape(first_P, (side, side))[of_pixel[:, None], of_pixel]
    table = np.array([*map(to_rgb, colours), (1.0, 1.0, 1.0)])  # the last: no expert
    tint_HW3 = 0.3 + 0.7 * table[first_HW]
    return tint_HW3 * (0.4 + 0.6 * light_HW1)


def _without_diagonal(matrix: Sequence[Sequence[float | None]]) -> np.ndarray:
    values_EE = np.array(matrix, dtype=float)
    np.fill_diagonal(values_EE, math.nan)
    return values_EE


def _write_cells(
    axes: Axes, image: AxesImage, values: np.ndarray, form: str, most: int = MOST_CELLS
) -> None:
    """The numbers in their cells, where there is room, light on dark ones."""
    if values.shape[1] > most:
        return
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            dark = np.dot(image.to_rgba(value)[:3], (0.3, 0.59, 0.11)) < 0.52
            text = form.format(value).replace("0.", ".", 1) if value < 1 else form.format(value)
            colour = "white" if dark else "#1d2430"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)


def _layer_name(layers: Sequence[Figures]) -> Callable[[float, float], str]:
    def name(place: float, _: float) -> str:
        return str(layers[int(place)]["layer"]) if 0 <= place < len(layers) else ""

    return name


def _bare(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5)
