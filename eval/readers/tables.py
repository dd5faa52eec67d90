"""Rows of parquet, arrow and TSV files, each with the place it stands at; few are held at once."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.readers.fields import in_utf8

Row = dict[str, Any]
BATCH = 16  # rows; each may hold a picture of some megabytes
IPC_FILE = b"ARROW1"  # how an arrow file begins that is not a stream
LONGEST_CELL = 1 << 30


def read_table(
    files: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """The named columns of each row, file by file, with ``file:row N``.

    ``optional`` columns that a file lacks are left out of its rows; any other one is refused.
    """
    for path in files:
        names = read_schema(path, columns).names
        wanted = [*columns, *(name for name in optional if name in names)]
        number = 0
        with _whole(path):
            for batch in _batches(path, wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", row


def read_schema(path: Path, columns: Sequence[str] = ()) -> pa.Schema:
    """The columns of a parquet or arrow file; ValueError where ``columns`` are not among them."""
    with _whole(path):
        schema = pq.read_schema(path) if path.suffix == ".parquet" else _arrow_schema(path)
    if lacking := sorted(set(columns) - set(schema.names)):
        raise ValueError(f"{path}: columns {lacking} are missing; it has {schema.names}")
    return schema


def holds_texts(path: Path, column: str) -> bool:
    """Whether a parquet or arrow file has texts, or lists of texts, in a column of this name."""
    schema = read_schema(path)
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_tsv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a tab-separated file with a head line, all cells texts, with ``file:row N``."""
    csv.field_size_limit(LONGEST_CELL)  # csv's own limit is below the size of a picture
    with in_utf8(path), path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", strict=True)
        if lacking := sorted(set(columns) - set(rows.fieldnames or ())):
            raise ValueError(f"{path}: columns {lacking} are missing; it has {rows.fieldnames}")
        for number, row in enumerate(rows, start=1):
            where = f"{path}:row {number}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: it has not as many cells as the head line")
            yield where, row


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a whole parquet or arrow file ({error}); fetch it again"
        ) from error


def _batches(path: Path, columns: list[str]) -> Iterable[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=BATCH, columns=columns)
        return
    with pa.memory_map(str(path)) as source:
        for batch in _arrow_batches(path, source):
            for start in range(0, batch.num_rows, BATCH):
                yield batch.select(columns).slice(start, BATCH)


def _arrow_batches(path: Path, source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    if _is_ipc_file(path):
        reader = pa.ipc.open_file(source)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(source)


def _arrow_schema(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as source:
        opened = pa.ipc.open_file if _is_ipc_file(path) else pa.ipc.open_stream
        return opened(source).schema


def _is_ipc_file(path: Path) -> bool:
    with path.open("rb") as head:
        return head.read(len(IPC_FILE)) == IPC_FILE
