"""Rows of tables with pictures; a picture that was kept before is not read again.

``ROOT/.pictures/tables/PATH.json`` says of the table file at PATH below the root which file holds
the picture of each cell, and the size and time of change that the table had then.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.readers.memory import FOLDER, recall, remember, state
from eval.readers.pictures import Cell, Content
from eval.readers.tables import Row, read_schema, read_table

Names = str | list[str | None] | None  # of a row; "" is a picture that was not kept


def read_pictured(
    root: Path,
    files: Sequence[Path],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    pictures: Sequence[str] = ("image",),
) -> Iterator[tuple[str, Row]]:
    """As ``read_table``, with cells for ``keep_picture`` in the columns ``pictures``.

    There a row has a Cell, a list of them, or None where the table has nothing. Keep a picture
    before the next row is taken, or it is read again the next time.
    """
    for path in files:
        there = read_schema(path, columns).names
        memory = root / FOLDER / "tables" / f"{path.relative_to(root)}.json"
        now, known = state(path), recall(memory)
        names = known["columns"] if known and known["state"] == now else {}
        shown = [
            _Column(path, name, names.get(name))
            for name in pictures
            if name in there and name in (*columns, *optional)
        ]
        rest = [[name for name in some if name not in pictures] for some in (columns, optional)]
        for number, (where, row) in enumerate(read_table([path], *rest)):
            yield where, row | {column.name: column.cells(number) for column in shown}
        if any(column.changed for column in shown):
            names |= {column.name: column.names for column in shown}
            remember(memory, {"state": now, "columns": names})


class _Column:
    """The cells of a column of pictures, row by row, and the names under which they are kept."""

    def __init__(self, path: Path, name: str, names: list[Names] | None) -> None:
        self.name = name
        self.names: list[Names] = names or []
        self.changed = False  # is there a name that the memory lacks?
        self._path = path
        self._row = -1  # the one whose content is held
        self._content: Any = None
        self._rows: Iterator[tuple[str, Row]] = iter(())

    def cells(self, row: int) -> Cell | list[Cell | None] | None:
        if row == len(self.names):
            content = self._read(row)
            self.names.append(_unkept(content))
            self.changed = True
        names = self.names[row]
        if isinstance(names, list):
            return [
                None if name is None else Cell(name, *self._ways(row, place))
                for place, name in enumerate(names)
            ]
        return None if names is None else Cell(names, *self._ways(row, None))

    def _ways(self, row: int, place: int | None) -> tuple[Any, Any]:
        return partial(self._cell, row, place), partial(self._note, row, place)

    def _cell(self, row: int, place: int | None) -> Content:
        content = self._read(row)
        cell: Content = content if place is None else content[place]
        return cell

    def _note(self, row: int, place: int | None, kept: str) -> None:
        names = self.names[row]
        if isinstance(names, list) and place is not None:
            names[place] = kept
        else:
            self.names[row] = kept
        self.changed = True

    def _read(self, row: int) -> Any:
        if row < self._row or self._row < 0:
            self._row, self._rows = -1, read_table([self._path], [self.name])
        while self._row < row:
            self._row += 1
            self._content = next(self._rows)[1][self.name]
        return self._content


def _unkept(content: Any) -> Names:
    if isinstance(content, list):
        return [None if item is None else "" for item in content]
    return None if content is None else ""
