"""What a document is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """``level`` 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text; no markup in it has a meaning."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells of plain text; every row is as long as ``head``."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """A file's text, folded away where the format can."""

    title: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A chart; ``name`` is its file's, unique in the document."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Card:
    """A picture, what was asked about it and what came back."""

    name: str
    png: bytes
    question: str
    answer: str
    truth: str
    right: bool
    source: str


@dataclass(frozen=True)
class Gallery:
    """Cards side by side."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Numbers:
    """What to know at a glance: pairs of a number and what it is."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Taker:
    """An expert, or whatever takes things: pictures and words, these with a note each."""

    name: str
    title: str
    note: str
    colour: str  # #rrggbb
    picture: bytes | None  # PNG or JPEG
    words: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Takers:
    """Who takes what, side by side."""

    takers: tuple[Taker, ...]


Block = Heading | Paragraph | Bullets | Table | Code | Figure | Gallery | Numbers | Takers
