"""What the command line can say about the rows; imports nothing that is slow to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMATS = ("llava", "sharegpt", "openai", "vqa")
ANSWERS = ("auto", "letter", "index", "text")  # what names the right one of several options

# What is read of a row of a VQA table -> where it is looked for unless --columns says.
COLUMNS = {
    "id": ("id", "question_id"),
    "image": ("image", "images"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "options": ("options", "choices"),
}
LISTS = ("image", "answer", "options")  # may be spread over several columns


@dataclass(frozen=True)
class Table:
    """How the rows of a VQA table are to be read."""

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answer_is: str = "auto"  # one of ANSWERS
    instruction: str | None = None  # after every question; None: LLaVA's where there are options

    def values(self, row: Mapping[str, Any], name: str) -> list[Any]:
        """What the row has for ``name``, column by column; without those that hold nothing."""
        if name in self.columns:
            found = [row.get(column) for column in self.columns[name]]
        else:
            found = [row[column] for column in COLUMNS[name] if column in row][:1]
        return [value for value in found if not is_empty(value)]

    def used(self) -> set[str]:
        """All columns that may be read."""
        return {c for name in COLUMNS for c in self.columns.get(name, COLUMNS[name])}


def is_empty(value: Any) -> bool:
    """Is it what a table has where a cell holds nothing?"""
    if isinstance(value, str):
        return not value.strip()
    not_a_number = isinstance(value, float) and value != value
    return value is None or value == [] or not_a_number
