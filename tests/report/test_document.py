"""Blocks whose rendering no report's test looks at closely."""

import pytest

from llava_compete.report.blocks import Heading, Numbers, Table, Taker, Takers
from llava_compete.report.document import write
from llava_compete.report.drawing import COLOURS, many_colours
from llava_compete.report.html import to_html
from llava_compete.report.markdown import to_markdown

PNG, JPEG = b"\x89PNG...", b"\xff\xd8\xff..."
EVIL = "<b>&|"


def taker(picture: bytes | None) -> Taker:
    return Taker("t.jpg", EVIL, EVIL, "#123456", picture, ((EVIL, EVIL),))


def test_texts_are_disarmed_in_both_formats() -> None:
    blocks = (Heading("t", 1), Numbers(((EVIL, EVIL),)), Takers((taker(None),)))
    page, text = to_html(blocks), to_markdown(blocks)
    assert "<b>&|" not in page
    assert page.count("&lt;b&gt;&amp;|") == 6
    assert "<b>" not in text
    assert text.count("&lt;b&gt;&amp;\\|") == 6


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (("26.2 +- 5.5 (n 3 of 1,000)", "-", "+0.0", "", "53.8 %"), True),
        (("26.2 +- 5.5", "none"), True),
        (("26.2 +- 5.5", "no score (UNSCORED: n 3 of 60)"), True),
        (("3", "three"), False),
        (("586e2f0078d6",), False),
        (("none: a dense model",), False),
    ],
)
def test_columns_of_numbers_stand_at_the_right(cells, right) -> None:
    table = Table(("column",), tuple((cell,) for cell in cells))
    assert ('<td class="number">' in to_html((Heading("t", 1), table))) == right


def test_a_picture_says_of_what_kind_it_is() -> None:
    page = to_html((Heading("t", 1), Takers((taker(PNG), taker(JPEG), taker(None)))))
    assert page.count("data:image/png;base64") == page.count("data:image/jpeg;base64") == 1
    assert page.count("<img") == 2


def test_pictures_of_takers_lie_beside_the_markdown(tmp_path) -> None:
    write((Heading("t", 1), Takers((taker(JPEG),))), tmp_path)
    assert (tmp_path / "figures" / "t.jpg").read_bytes() == JPEG
    assert "![](figures/t.jpg)" in (tmp_path / "report.md").read_text()


def test_many_things_have_as_many_colours() -> None:
    assert many_colours(3) == list(COLOURS[:3])
    assert len(set(many_colours(64))) == 64
