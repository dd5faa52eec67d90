"""Tables and row files in, row files out, a row at a time."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.normalising.faults import WRONG_WIDTH
from llava_compete.data.files import MAX_ROW_BYTES, read_rows

Row = dict[str, Any]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".parquet")  # of what is written
GROUP_ROWS = 1024  # of a parquet file that is written
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.list_(pa.string())),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("source", pa.string()),
        ("length", pa.int32()),
        ("length_by", pa.string()),
    ]
)


def read(file: Path) -> Iterator[Row]:
    """The rows of CSV, TSV, JSON, JSONL or parquet; ValueError names file and line.

    Empty cells of CSV are left out of their row, as read_rows leaves out what is null in parquet.
    """
    return _read_csv(file) if file.suffix in DELIMITERS else read_rows(file)


def columns(file: Path, first_rows: list[Row]) -> set[str]:
    """The columns of a table; of JSON the keys of its first rows."""
    if file.suffix in DELIMITERS:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            return set(next(csv.reader(opened, delimiter=DELIMITERS[file.suffix], strict=True)))
    if file.suffix == ".parquet":
        return set(pq.read_schema(file).names)
    return {key for row in first_rows for key in row}


def count_rows(file: Path) -> int | None:
    """How many rows there are, where the file says so without being read."""
    return pq.read_metadata(file).num_rows if file.suffix == ".parquet" else None


def _read_csv(file: Path) -> Iterator[Row]:
    if not file.is_file():
        raise ValueError(f"data file {file} does not exist")
    csv.field_size_limit(MAX_ROW_BYTES)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        lines = csv.reader(opened, delimiter=DELIMITERS[file.suffix], strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header) or not any(header):
                raise ValueError(
                    f"{file}: the first line must name each column once, got {header!r:.200}"
                )
            empty = True
            for fields in lines:
                if not fields:
                    continue  # a blank line
                row: Row = {k: v for k, v in zip(header, fields, strict=False) if v}
                if len(fields) != len(header):
                    row[WRONG_WIDTH] = f"{len(fields)} fields, the header {len(header)}"
                yield row
                empty = False
        except csv.Error as error:
            raise ValueError(f"{file} line {lines.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} after line {lines.line_num} is not UTF-8: {error}; iconv -f LATIN1 -t "
                f"UTF-8, or what else it was written in, makes it so"
            ) from error
        if empty:
            raise ValueError(f"{file} holds no rows")


class RowWriter:
    """Rows into ``.jsonl`` or ``.parquet``; ``path`` may have any name, ``suffix`` says which."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._rows: list[Row] = []
        self._table = pq.ParquetWriter(path, SCHEMA) if suffix == ".parquet" else None
        self._lines = None if self._table else path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._table:
            if kind is None and self._rows:
                self._write_group()
            self._table.close()
        if self._lines:
            self._lines.close()

    def write(self, row: Row) -> None:
        """One row of the schema's keys; ``image`` is absent, a name or a list."""
        if self._lines:
            self._lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        self._rows.append(row)
        if len(self._rows) == GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        assert self._table is not None
        rows = [{**row, "image": _as_list(row.get("image"))} for row in self._rows]
        self._table.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        self._rows.clear()


def _as_list(image: str | list[str] | None) -> list[str] | None:
    return [image] if isinstance(image, str) else image


def dropped_line(number: int, name: str | None, reason: str, detail: str, row: Row) -> str:
    """A line of OUTPUT.dropped.jsonl: ASCII, so that any text of the row can be written."""
    entry = {"row": number, "id": name, "reason": reason, "detail": detail, "content": row}
    return json.dumps(entry, default=_as_json) + "\n"


def _as_json(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)
