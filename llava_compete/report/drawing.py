"""Colours and files of charts: a chart depends on nothing but its numbers."""

from io import BytesIO

import matplotlib
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

# Okabe and Ito's colours, which a colour-blind reader can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
# Below, at and above a value that means nothing.
LESS_OR_MORE = LinearSegmentedColormap.from_list(
    "less_or_more", (COLOURS[0], "#ffffff", COLOURS[1])
)
MORE = LinearSegmentedColormap.from_list("more", ("#ffffff", COLOURS[2]))
WIDTH = 9.2  # inches of a chart


def many_colours(count: int) -> list[str]:
    """``count`` colours to tell things apart: COLOURS, and where they do not suffice a rainbow."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    rainbow = matplotlib.colormaps["turbo"]
    return [to_hex(rainbow(place / (count - 1))) for place in range(count)]


def to_png(figure: Figure) -> bytes:
    """The chart as a PNG file, the same bytes for the same chart."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=140, metadata={"Software": None})
    return file.getvalue()
