"""Charts and page of figures as they come: many experts, one, layers and kinds without a token."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llava_compete.report.blocks import Figure, Takers
from llava_compete.report.html import to_html
from llava_compete.routing.charts import (
    curves_chart,
    load_chart,
    maps_chart,
    matrices_chart,
    matrices_of,
    spread,
)
from llava_compete.routing.page import blocks
from llava_compete.routing.pictures import GAP, STRIP, TILE, Pictures

GRID = 2
MEANS = ("entropy", "margin", "relative_margin", "agreement", "agreement_shuffled", "chance")
RED = "#ff0000"


def kind(experts, value=0.25):
    return {
        "tokens": 8,
        "load": [1 / experts] * experts,
        "experts_per_token": 2.0,
        **dict.fromkeys((*MEANS, "drop_top1"), value),
        "changed": None,
        "coactivation": [[0.5] * experts] * experts,
        "similarity": [[0.9] * experts] * experts,
    }


def part(experts=4, layers=3, top_k=2, kinds=("image", "text", "all")):
    return {
        "router": "topk",
        "num_experts": experts,
        "top_k": top_k,
        "layers": [
            {
                "layer": 3 * n,
                "gap": 0.1,
                "kinds": {name: kind(experts) for name in kinds},
                "words": [[{"word": " a<b", "count": 2, "share": 0.5, "lift": 2.0}]] * experts,
                "patches": [[{"lead": 1.0, "file": "a.png", "patch": 3}]] * experts,
            }
            for n in range(layers)
        ],
    }


def figures(parts):
    first = {name: [[0, 1, -1, 0]] * len(p["layers"]) for name, p in parts.items()}
    return {
        **{"checkpoint": "out/tuned", "other": None, "data": "rows.json", "dtype": "float32"},
        **{"rows": 5, "rows_of_data": 6, "grid": GRID},
        "answer_loss": {"tokens": 9, "value": 1.0, "drop_top1": 1.5, "drop_top1_change": 0.5},
        "parts": parts,
        "maps": [{"file": "a.png", "first": first}],
    }


@pytest.fixture
def pictures(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    return Pictures(tmp_path, GRID, (9, 9, 9))


def quiet_layers(part):
    """The last layer competed, the first has a kind to whose tokens no expert came."""
    part["layers"][-1] |= {"kinds": {}, "gap": None, "words": [], "patches": []}
    text = part["layers"][0]["kinds"]["text"]
    text |= {"load": [None] * part["num_experts"], **dict.fromkeys(MEANS), "drop_top1": None}
    return part


PARTS = {
    "usual": part(),
    "many": part(experts=20, layers=40),
    "one expert": part(experts=1, top_k=1),
    "one choice": part(top_k=1),
    "one layer": part(layers=1, kinds=("image", "all")),
    "quiet": quiet_layers(part()),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_page_of_every_shape_can_be_written(pictures, name):
    found = list(blocks(figures({"vision": PARTS[name]}), pictures))
    page = to_html(found)
    assert "Image tower" in page
    assert "a&lt;b" in page
    assert ">nan<" not in page
    charts = [block for block in found if isinstance(block, Figure)]
    for chart in charts:
        assert min(Image.open(BytesIO(chart.png)).size) > 100
    wanted = 2 + (len(PARTS[name]["layers"]) > 1) + len(matrices_of(PARTS[name]))
    assert len(charts) == wanted


@pytest.mark.parametrize(
    "draw", [load_chart, curves_chart, lambda p: matrices_chart(p, "similarity")]
)
def test_a_chart_is_the_same_for_the_same_figures(draw):
    assert draw(part()) == draw(part())


def test_a_part_that_saw_nothing_is_left_out(pictures):
    empty = part()
    for layer in empty["layers"]:
        layer |= {"kinds": {}, "words": [], "patches": []}
    found = figures({"language_model": part(), "projector": empty})
    found["maps"][0]["first"]["projector"] = []
    assert "Projector" not in to_html(list(blocks(found, pictures)))


def test_every_expert_has_a_card_at_the_shown_layers(pictures):
    found = list(blocks(figures({"language_model": part(layers=9)}), pictures))
    galleries = [block for block in found if isinstance(block, Takers)]
    assert len(galleries) == 6
    assert all(len(gallery.takers) == 4 for gallery in galleries)


@pytest.mark.parametrize(("count", "most", "kept"), [(3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9])])
def test_what_is_spread_keeps_first_and_last(count, most, kept):
    assert spread(range(count), most) == kept


def test_a_patch_is_cut_from_the_padded_picture_and_framed(pictures):
    square = np.asarray(pictures.square("a.png"))
    assert square.shape[0] == square.shape[1]
    assert (square[0] == 9).all(), "no padding above a picture twice as wide as high"
    tile = np.asarray(pictures.patch("a.png", 3, RED))  # below right; the window is all of it
    assert tile.shape == (TILE, TILE, 3)
    assert tuple(tile[-1, -1]) == tuple(tile[TILE // 2, TILE // 2]) == (255, 0, 0)
    assert tuple(tile[3 * TILE // 8, 3 * TILE // 4])[2] > 200, (
        "the right half of the picture is blue"
    )
    assert not (tile[:, : TILE // 2] == (255, 0, 0)).all(axis=-1).any()


def test_a_strip_has_no_empty_row(pictures):
    patches = [{"file": "a.png", "patch": 0}] * 20
    sizes = [
        Image.open(BytesIO(pictures.strip(patches[:n], RED))).size for n in (1, STRIP[0] + 1, 20)
    ]
    width = STRIP[0] * (TILE + GAP) - GAP
    assert sizes == [(width, TILE), (width, 2 * TILE + GAP), (width, 2 * TILE + GAP)]


def test_a_map_has_the_pictures_as_columns_and_the_layers_as_rows(pictures):
    maps = [{"file": "a.png", "first": {"vision": [[0, 1, 2, -1]] * n}} for n in (1, 3)]
    one, three = (
        Image.open(BytesIO(maps_chart([found], "vision", list(range(n)), 3, pictures.square)))
        for found, n in zip(maps, (1, 3), strict=True)
    )
    assert one.width == three.width
    assert three.height > 1.5 * one.height
