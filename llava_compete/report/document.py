"""A document of blocks, as a self-contained HTML file and as Markdown with pictures beside it."""

from collections.abc import Sequence
from pathlib import Path

from llava_compete.report.blocks import Block, Figure, Gallery, Takers
from llava_compete.report.html import to_html
from llava_compete.report.markdown import FIGURES, to_markdown


def write(blocks: Sequence[Block], output: Path) -> list[Path]:
    """Write report.md, report.html and the pictures of the former; gives the two reports' paths."""
    (output / FIGURES).mkdir(parents=True, exist_ok=True)
    for block in blocks:
        for name, png in _pictures(block):
            (output / FIGURES / name).write_bytes(png)
    texts = {"report.md": to_markdown(blocks), "report.html": to_html(blocks)}
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")
    return [output / name for name in texts]


def _pictures(block: Block) -> list[tuple[str, bytes]]:
    match block:
        case Figure(name, png, _):
            return [(name, png)]
        case Gallery(cards):
            return [(card.name, card.png) for card in cards]
        case Takers(takers):
            return [(taker.name, taker.picture) for taker in takers if taker.picture is not None]
        case _:
            return []
