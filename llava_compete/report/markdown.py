"""Blocks -> Markdown, which looks for its pictures beside it."""

import re
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

FIGURES = "figures"  # the folder of the pictures


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are looked for in ``figures/`` beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(head, rows):
            lines = [head, ("---",) * len(head)]
            lines += [tuple(_plain(cell) for cell in row) for row in rows]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)
        case Code(title, text):
            return f"{_plain(title)}:\n\n````\n{text.rstrip()}\n````"
        case Figure(name, _, caption):
            return f"![]({FIGURES}/{name})\n\n{_plain(caption)}"
        case Gallery(cards):
            return "\n\n".join(map(_markdown_card, cards))
        case Numbers(items):
            return "\n".join(f"- {_plain(what)}: {_plain(number)}" for number, what in items)
        case Takers(takers):
            return "\n\n".join(map(_markdown_taker, takers))


def _markdown_card(card: Card) -> str:
    verdict = "right" if card.right else "wrong"
    pairs = (("asked", card.question), ("answer", card.answer), ("truth", card.truth))
    listed = "\n".join(f"- {term}: {_plain(text)}" for term, text in pairs)
    return f"![]({FIGURES}/{card.name})\n\n**{verdict}** ({_plain(card.source)})\n\n{listed}"


def _markdown_taker(taker: Taker) -> str:
    words = ", ".join(f"{_plain(word)} ({_plain(note)})" for word, note in taker.words)
    picture = "" if taker.picture is None else f"\n\n![]({FIGURES}/{taker.name})"
    return f"**{_plain(taker.title)}** ({_plain(taker.note)}){picture}\n\n{words}"


def _plain(text: str) -> str:
    """The text with everything disarmed that Markdown, or HTML inside it, would act upon."""
    text = re.sub(r"([\\`*\[\]|#])|(?<!\w)_|_(?!\w)", r"\\\g<0>", escape(text, quote=False))
    return text.replace("\n", "<br>")
