"""Data files: their rows one after the other, in memory that does not grow with the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROW_BYTES = 16 * 2**20  # the longest rows that are meant have some 100 KB
BLOCK_BYTES = 64 * 2**10
BATCH_ROWS = 256  # of a parquet file at a time, fewer where rows hold pictures
BATCH_BYTES = 8 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Row = dict[str, Any]


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a ``.json`` file (a list), of a ``.jsonl`` file (one a line) or of ``.parquet``.

    Rows are counted from 0, lines from 1; blank lines are no rows. Parquet has every column in
    every row, so what is null at a row's top level is left out there. ValueError, when that place
    is reached, names the file, the row or line and the fix: a file that is cut, damaged or not
    UTF-8 (a byte order mark is no fault), a row that is no object or longer than MAX_ROW_BYTES, a
    file without rows.
    """
    readers = {".json": _json_rows, ".jsonl": _json_lines, ".parquet": _parquet_rows}
    if file.suffix not in readers:
        raise ValueError(
            f"data file {file}: rows are read from {', '.join(readers)}, not from {file.suffix!r}"
        )
    if not file.is_file():
        raise ValueError(f"data file {file} does not exist")
    return _at_least_one(readers[file.suffix](file), file)


def _at_least_one(rows: Iterator[Row], file: Path) -> Iterator[Row]:
    empty = True
    for row in rows:
        yield row
        empty = False
    if empty:
        raise ValueError(f"{file} holds no rows")


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as opened:
        _skip_mark(opened, file)
        number = 0
        while line := opened.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{file} line {number}"
            if len(line) > MAX_ROW_BYTES:
                raise _too_long(where)
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"{where} is not JSON: {error}; a .jsonl file has one row a line, a list of "
                    f"rows is named .json"
                ) from error
            yield _object(row, where)


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as opened:
        begin = _skip_mark(opened, file)
        head = opened.read(BLOCK_BYTES).lstrip()[:20]
        if head and not head.startswith(b"["):
            raise ValueError(
                f"{file}: a LLaVA file is a JSON list of rows, this one begins with "
                f"{head.decode(errors='replace')!r}; rows one a line belong into a .jsonl file"
            )
        opened.seek(begin)
        blocks = _Blocks(opened, file)
        number = 0
        try:
            for row in ijson.items(blocks, "item", buf_size=BLOCK_BYTES, use_float=True):
                yield _object(row, f"{file} row number {number}")
                number += 1
                blocks.begin_row(number)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            what = str(error)
            if "UTF8" in what or isinstance(error, UnicodeDecodeError):
                raise _not_utf8(f"{file} row number {number}", error) from error
            raise ValueError(
                f"{file} is not JSON after {number} whole rows: {what.strip()}\nThe file is cut or "
                f"damaged there: fetch or write it again"
            ) from error


class _Blocks:
    """The file for ijson, which refuses to go on reading for a row that does not end."""

    def __init__(self, opened: IO[bytes], file: Path) -> None:
        self.opened = opened
        self.file = file
        self.begin_row(0)

    def begin_row(self, number: int) -> None:
        self.number = number
        self.bytes = 0  # of the row, those of its first block not counted

    def read(self, size: int) -> bytes:
        if self.bytes > MAX_ROW_BYTES:
            raise _too_long(f"{self.file} row number {self.number}")
        block = self.opened.read(size)
        self.bytes += len(block)
        return block


def _parquet_rows(file: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:  # else it holds the file's bytes
            for batch in opened.iter_batches(batch_size=_batch_rows(opened.metadata)):
                if batch.nbytes > MAX_ROW_BYTES:
                    for place in range(batch.num_rows):
                        if batch.slice(place, 1).nbytes > MAX_ROW_BYTES:
                            raise _too_long(f"{file} row number {number + place}")
                for row in batch.to_pylist():
                    yield {key: value for key, value in row.items() if value is not None}
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{file} is not Parquet after {number} whole rows: {error}; the file is cut or "
            f"damaged: fetch or write it again"
        ) from error


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows of about BATCH_BYTES by the mean over the file, BATCH_ROWS at most."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    return min(BATCH_ROWS, max(1, BATCH_BYTES * metadata.num_rows // max(1, size)))


def _skip_mark(opened: IO[bytes], file: Path) -> int:
    """Where the text begins; ValueError for UTF-16 by its mark or its zero bytes."""
    head = opened.read(4)
    if head.startswith(UTF_16) or b"\0" in head:
        raise ValueError(
            f"{file} is UTF-16 or UTF-32, rows are read as UTF-8: iconv -f UTF-16 -t UTF-8 makes "
            f"it so"
        )
    begin = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    opened.seek(begin)
    return begin


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object, found {type(row).__name__}")
    return row


def _too_long(where: str) -> ValueError:
    return ValueError(
        f"{where} has more than {MAX_ROW_BYTES} bytes, no conversation has: drop it, or look "
        f"whether a quote or a line break is missing"
    )


def _not_utf8(where: str, error: Exception) -> ValueError:
    return ValueError(
        f"{where} is not UTF-8: {error}; iconv -f LATIN1 -t UTF-8, or what else it was written in, "
        f"makes it so"
    )
