"""Every row of a data file measured and written to the table that RowTable maps."""

import itertools
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_compete.data.aside import written_aside
from llava_compete.data.encode import Measure, TooLongError, measure
from llava_compete.data.exclude import Exclusion
from llava_compete.data.files import Row, read_rows
from llava_compete.data.rows import row_name, source_of, to_messages

TABLE_VERSION = 1  # raise it where the columns or what makes them change
CHUNK_ROWS = 500
PARALLEL_FROM = 20_000  # rows; until here starting processes takes longer than they save
MAX_WORKERS = 16  # each takes some 400 MB; the process that reads the file feeds no more
SHOWN = 5  # refused rows that an error names

SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "length": pa.int32(),
        "full_length": pa.int32(),
        "exchanges_dropped": pa.int32(),
        "answer_cut": pa.bool_(),
        "source": pa.string(),
        "id": pa.string(),
    }
)


@dataclass
class LeftOut:
    """Rows that are not in the table."""

    excluded: Counter[str] = field(default_factory=Counter)  # by source
    refused: Counter[str] = field(default_factory=Counter)  # by source: max_length leaves nothing
    first_refused: list[str] = field(default_factory=list)  # SHOWN of them with their fault

    @classmethod
    def from_json(cls, text: str) -> "LeftOut":
        """What ``to_json`` wrote."""
        values = json.loads(text)
        excluded, refused = Counter(values["excluded"]), Counter(values["refused"])
        return cls(excluded, refused, values["first_refused"])

    def to_json(self) -> str:
        """For the table's metadata."""
        return json.dumps(vars(self))


class Chunk(NamedTuple):
    """Some rows, measured."""

    columns: pa.RecordBatch  # SCHEMA
    texts: list[bytes]  # JSON of the same rows
    refused: list[tuple[str, str]]  # source and fault


class Measurer:
    """Measures rows of one data file; travels to other processes."""

    def __init__(
        self, processor: LlavaProcessor, max_length: int | None, fingerprint: str, file: Path
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.fingerprint = fingerprint
        self.file = file

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> Chunk:
        """ValueError for a faulty row; one that is too long is refused."""
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        texts: list[bytes] = []
        refused: list[tuple[str, str]] = []
        for number, row in rows:
            name = row_name(row, number)
            try:
                measured = self._measure(row, name)
            except TooLongError as error:
                refused.append((source_of(row), f"sample {name}: {error}"))
                continue
            values = (number, *measured, source_of(row), name)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            texts.append(self._text(row, name))
        return Chunk(pa.RecordBatch.from_pydict(columns, SCHEMA), texts, refused)

    def _measure(self, row: Row, name: str) -> Measure:
        messages = to_messages(row, name)
        if row.get("length_by") == self.fingerprint:
            length: int = row["length"]
            if self.max_length is None or length <= self.max_length:
                return Measure(length, length, 0, False)
        try:
            return measure(self.processor, messages, self.max_length)
        except TooLongError:
            raise
        except ValueError as error:
            raise ValueError(f"sample {name} of {self.file}: {error}") from error

    def _text(self, row: Row, name: str) -> bytes:
        try:
            return json.dumps(row, separators=(",", ":")).encode()
        except (TypeError, RecursionError) as error:
            raise ValueError(
                f"sample {name} of {self.file}: the row cannot be written as JSON ({error}): leave "
                f"out what is no text, number, list or object"
            ) from error


def write_table(
    target: Path,
    file: Path,
    processor: LlavaProcessor,
    max_length: int | None,
    exclusions: Mapping[int, Exclusion],
    *,
    num_workers: int,
    fingerprint: str,
    stat: tuple[int, int],
) -> None:
    """Write the table of ``file``, whose size and mtime_ns are ``stat``, to ``target``.

    In memory that grows by some 60 bytes a row: the texts go to disk at once. ValueError for a
    faulty row, an exclusion of another row's id, no row left, and a file that changes meanwhile.
    """
    left_out = LeftOut()
    measurer = Measurer(processor, max_length, fingerprint, file)
    text_file = target.with_name(f".{target.name}.{os.getpid()}.text")
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(text_file.unlink, missing_ok=True)
            texts = stack.enter_context(text_file.open("wb"))
        except OSError as error:
            raise ValueError(
                f"rows are kept in {target.parent}, which cannot be written ({error}): name "
                f"another folder by LLAVA_COMPETE_CACHE"
            ) from error
        columns, sizes = [], [np.zeros(1, dtype=np.int64)]
        rows = _without_excluded(file, exclusions, left_out)
        bar = stack.enter_context(tqdm(desc=f"measuring {file.name}", unit=" rows", disable=None))
        for chunk in _measured(measurer, rows, num_workers):
            columns.append(chunk.columns)
            sizes.append(np.array([len(text) for text in chunk.texts], dtype=np.int64))
            texts.writelines(chunk.texts)
            for source, fault in chunk.refused:
                left_out.refused[source] += 1
                if len(left_out.first_refused) < SHOWN:
                    left_out.first_refused.append(fault)
            bar.update(len(chunk.texts) + len(chunk.refused))
        texts.close()
        if (file.stat().st_size, file.stat().st_mtime_ns) != stat:
            raise ValueError(f"{file} has changed while it was read: start again when it is whole")
        partial = stack.enter_context(written_aside(target, writer=os.getpid()))
        _write(partial, text_file, pa.Table.from_batches(columns, SCHEMA), sizes, left_out, file)


def _write(
    partial: Path,
    text_file: Path,
    columns: pa.Table,
    sizes: Sequence[np.ndarray],
    left_out: LeftOut,
    file: Path,
) -> None:
    """One record batch, so that each column lies in one piece; the texts are copied by mapping."""
    if not columns.num_rows:
        raise ValueError(
            f"{file}: no row is left to train on: {left_out.excluded.total()} are excluded, "
            f"{left_out.refused.total()} refused; the first: {left_out.first_refused[:1]}"
        )
    ends = pa.py_buffer(np.concatenate(sizes).cumsum())
    with pa.memory_map(str(text_file)) as mapped:
        rows = pa.LargeStringArray.from_buffers(columns.num_rows, ends, mapped.read_buffer())
        columns = columns.combine_chunks()
        arrays = {name: columns[name].chunk(0) for name in columns.column_names}
        arrays["source"] = arrays["source"].dictionary_encode()
        batch = pa.record_batch({"row": rows, **arrays})
        batch = batch.replace_schema_metadata({"left_out": left_out.to_json()})
        with pa.ipc.new_file(str(partial), batch.schema) as out:
            out.write_batch(batch)


def _without_excluded(
    file: Path, exclusions: Mapping[int, Exclusion], left_out: LeftOut
) -> Iterator[tuple[int, Row]]:
    """Numbered rows; those left out are counted."""
    for number, row in enumerate(read_rows(file)):
        if number not in exclusions:
            yield number, row
            continue
        if (name := row_name(row, number)) != exclusions[number].id:
            raise ValueError(
                f"the exclusion file calls row {number} of {file} {exclusions[number].id!r}, its "
                f"id is {name!r}: run `python -m data_prep check --drop` again"
            )
        left_out.excluded[_source_of_any(row)] += 1


def _source_of_any(row: Row) -> str:
    try:
        return source_of(row)
    except ValueError:  # what it names as its images is none: it may be excluded for that
        return "unknown"


def _measured(
    measurer: Measurer, rows: Iterator[tuple[int, Row]], num_workers: int
) -> Iterator[Chunk]:
    """Chunks in the order of the rows; by several processes where there are many rows."""
    chunks = iter(lambda: list(itertools.islice(rows, CHUNK_ROWS)), [])
    yield from map(measurer, itertools.islice(chunks, PARALLEL_FROM // CHUNK_ROWS))
    if num_workers == 1:
        yield from map(measurer, chunks)
        return
    first = next(chunks, None)
    if first is None:
        return
    with ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads hangs
        initializer=_begin_worker,
        initargs=(measurer,),
    ) as pool:
        yield from _in_order(pool.submit, itertools.chain([first], chunks), 4 * num_workers)


def _in_order(
    submit: Callable[..., Future[Chunk]], chunks: Iterator[Any], most: int
) -> Iterator[Chunk]:
    """No more than ``most`` chunks are read ahead."""
    waiting: deque[Future[Chunk]] = deque()
    for chunk in chunks:
        waiting.append(submit(_measure_in_worker, chunk))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: Measurer  # of a process of the pool; set when it begins, holds until it ends


def _begin_worker(measurer: Measurer) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _worker = measurer


def _measure_in_worker(rows: Sequence[tuple[int, Row]]) -> Chunk:
    return _worker(rows)
