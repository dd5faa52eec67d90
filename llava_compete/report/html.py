"""Blocks -> one self-contained HTML file."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from llava_compete.report.blocks import (
    Block,
    Bullets,
    Card,
    Code,
    Figure,
    Gallery,
    Heading,
    Numbers,
    Paragraph,
    Table,
    Taker,
    Takers,
)

JPEG = b"\xff\xd8"  # how such a file begins

STYLE = """
body { margin: 0; background: #f4f5f7; color: #1d2430; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 2rem auto; padding: 1rem 3rem 3rem; background: #fff;
  border: 1px solid #e1e5ea; border-radius: 10px; }
h1 { font-size: 1.9rem; margin: 1.2rem 0 .6rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: 1rem; border-top: 1px solid #e1e5ea; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; color: #3a4657; }
h1, h2, h3, h4, p, li, summary, .source { overflow-wrap: anywhere; }
p, li { max-width: 50rem; }
ul { padding-left: 1.2rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: left; vertical-align: top; overflow-wrap: break-word;
  border-bottom: 1px solid #e8ebef; }
th { color: #5a6675; font-weight: 600; border-bottom: 2px solid #cfd6de; }
.number { text-align: right; } td.number { white-space: nowrap; }
figure { margin: 1.2rem 0 1.8rem; overflow-x: auto; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #5a6675; max-width: 50rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: #5a6675; font-size: .875rem; }
pre { background: #f4f5f7; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto;
  font-size: .8rem; line-height: 1.45; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #e1e5ea; border-radius: 8px; overflow: hidden; }
.card img { display: block; width: 100%; height: 11rem; object-fit: contain; background: #fafbfc;
  border-bottom: 1px solid #e1e5ea; }
.card div { padding: .7rem .9rem .9rem; font-size: .875rem; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem .7rem; margin: .6rem 0 0; }
.card dt { color: #5a6675; }
.card dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
.badge { padding: .05rem .55rem; border-radius: 1rem; font-weight: 600; font-size: .78rem; }
.right { background: #d9f0e3; color: #14623a; } .wrong { background: #fbe0dd; color: #93261b; }
.source { color: #5a6675; margin-left: .4rem; font-size: .78rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
  gap: .8rem; margin: 1.2rem 0; }
.numbers div { padding: .7rem .9rem; background: #f4f5f7; border-radius: 8px; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.3; }
.numbers span { display: block; color: #5a6675; font-size: .82rem; line-height: 1.35; }
.takes { grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); }
.takes .card img { height: auto; border: 0; }
.takes b { border-bottom: 3px solid; }
.takes .source { display: block; margin: .4rem 0 0; font-size: .72rem; }
.takes .words { display: flex; flex-wrap: wrap; gap: .3rem; padding: 0; margin-top: .6rem; }
.words span { padding: .05rem .4rem; background: #eef1f5; border-radius: 4px; white-space: pre; }
.words small { color: #5a6675; margin-left: .35rem; }
@media (max-width: 40rem) {
  main { margin: 0; padding: .2rem 1rem 2rem; border: 0; border-radius: 0; }
  figure img { max-width: 44rem; }
  th, td { padding: .35rem .5rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; min-width: 7.5rem;
    overflow-wrap: anywhere; }
}
@media print { body { background: #fff; } main { border: 0; margin: 0; } }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """One file that needs no other: pictures are inside it, scripts there are none."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table(head, rows):
            return _html_table(head, rows)
        case Code(title, text):
            summary = f"<summary>{escape(title)}</summary>"
            return f"<details>{summary}<pre>{escape(text)}</pre></details>"
        case Figure(_, png, caption):
            image = f'<img src="{_data_uri(png)}" alt="{escape(caption)}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Gallery(cards):
            return '<div class="cards">\n' + "\n".join(map(_html_card, cards)) + "\n</div>"
        case Numbers(items):
            tiles = (
                f"<div><b>{escape(n)}</b><span>{escape(what)}</span></div>" for n, what in items
            )
            return f'<div class="numbers">{"".join(tiles)}</div>'
        case Takers(takers):
            inside = "\n".join(map(_html_taker, takers))
            return f'<div class="cards takes">\n{inside}\n</div>'


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = zip(*rows, strict=True)
    classes = [' class="number"' if all(map(_is_number, c)) else "" for c in columns]
    lines = []
    for tag, row in (("th", head), *(("td", row) for row in rows)):
        cells = zip(row, classes, strict=True)
        lines.append("".join(f"<{tag}{name}>{escape(cell)}</{tag}>" for cell, name in cells))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table>\n{body}\n</table></div>'


def _is_number(cell: str) -> bool:
    """Whether a cell begins with a number or says that there is none; hex digits are no number."""
    return re.match(r"[-+]?(\d[\d.,]*(?!\w)|$)|none$|no score\b", cell) is not None


def _html_card(card: Card) -> str:
    verdict = "right" if card.right else "wrong"
    pairs = (("asked", card.question), ("answer", card.answer), ("truth", card.truth))
    listed = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in pairs)
    return (
        f'<div class="card"><img src="{_data_uri(card.png)}" alt="">'
        f'<div><span class="badge {verdict}">{verdict}</span>'
        f'<span class="source">{escape(card.source)}</span><dl>{listed}</dl></div></div>'
    )


def _html_taker(taker: Taker) -> str:
    image = "" if taker.picture is None else f'<img src="{_data_uri(taker.picture)}" alt="">'
    words = "".join(
        f"<span>{escape(word)}<small>{escape(note)}</small></span>" for word, note in taker.words
    )
    return (
        f'<div class="card">{image}<div><b style="border-color: {taker.colour}">'
        f'{escape(taker.title)}</b><span class="source">{escape(taker.note)}</span>'
        f'<div class="words">{words}</div></div></div>'
    )


def _data_uri(picture: bytes) -> str:
    kind = "jpeg" if picture.startswith(JPEG) else "png"
    return f"data:image/{kind};base64,{b64encode(picture).decode()}"
