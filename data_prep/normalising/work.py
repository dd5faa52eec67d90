"""One row of any format -> a LLaVA row that trains, or why not; in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformers import LlavaProcessor

from data_prep.formats import reader
from data_prep.normalising import images
from data_prep.normalising.faults import RowError, short, text_of
from data_prep.normalising.options import COLUMNS, Table
from llava_compete.data import measure, processor_fingerprint, to_messages
from llava_compete.data.encode import TooLongError
from llava_compete.data.rows import source_of

Row = dict[str, Any]

PARALLEL_FROM = 5000  # rows; until here starting processes takes longer than they save
CHUNK_ROWS = 8  # handed to another process at a time; a row may hold pictures
CHUNKS_AHEAD = 3  # of a process: what may wait, so that memory does not grow with the file
KEPT_KEYS = {"source", "length", "length_by"}  # read or made anew for every format
TURN_KEYS = {"from", "value", "role", "content"}


@dataclass(frozen=True)
class Settings:
    """What every row is turned by."""

    checkpoint: Path
    format: str
    table: Table
    place: images.Place
    id_stem: str  # of the ids of rows that have none
    source: str | None
    max_length: int | None


class Kept(NamedTuple):
    row: Row
    num_images: int
    left_out: list[str]  # keys of the row that are not carried over
    exchanges_dropped: int  # by a training with max_length
    answer_cut: bool


class Dropped(NamedTuple):
    number: int  # of the row in the input, from 0
    id: str | None
    reason: str
    detail: str
    row: Row


class Normaliser:
    """Rows one by one, by ``settings``."""

    def __init__(self, settings: Settings, processor: LlavaProcessor) -> None:
        self.settings = settings
        self.processor = processor
        self.fingerprint = processor_fingerprint(processor)
        self.read = reader(settings.format, settings.table)
        self.id_keys = set(settings.table.columns.get("id", COLUMNS["id"]))

    def __call__(self, number: int, row: Row) -> Kept | Dropped:
        """The row that to_messages accepts, with its length; pictures that it holds are written."""
        name = None
        try:
            name = self._name(number, row)
            draft = self.read(row)
            pictures = images.resolve(draft.images, self.settings.place)
            kept = self._kept(name, row, draft.turns, pictures.files)
        except RowError as error:
            return Dropped(number, name, error.reason, str(error), row)
        if self.settings.place.image_folder is not None:
            images.write(pictures.contents, self.settings.place.image_folder)
        read = draft.used | self.id_keys | KEPT_KEYS
        left_out = {str(key) for key in row if key not in read} | _left_out_of_turns(row)
        return kept._replace(left_out=sorted(left_out))

    def _kept(self, name: str, row: Row, turns: list[Row], files: list[str]) -> Kept:
        made: Row = {"id": name}
        if files:
            made["image"] = files[0] if len(files) == 1 else files
        made["conversations"] = turns
        try:
            messages = to_messages(made)
            source = self.settings.source or source_of({**made, "source": row.get("source")})
            lengths = measure(self.processor, messages, self.settings.max_length)
        except TooLongError as error:
            raise RowError("too long", f"sample {name}: {error}") from error
        except ValueError as error:
            raise RowError("conversation", str(error)) from error
        made["source"] = text_of(source, "'source'")
        made["length"] = lengths.full_length
        made["length_by"] = self.fingerprint
        return Kept(made, len(files), [], lengths.exchanges_dropped, lengths.answer_cut)

    def _name(self, number: int, row: Row) -> str:
        found = self.settings.table.values(row, "id")
        if not found:
            return f"{self.settings.id_stem}-{number}"
        own = found[0]
        if isinstance(own, bool) or not isinstance(own, str | int | float):
            raise RowError("id", f"an id must be a text or a number, got {short(own)}")
        return text_of(str(own), "the id")


def _left_out_of_turns(row: Row) -> set[str]:
    turns = row.get("conversations") or row.get("messages") or ()
    keys = {key for turn in turns for key, value in turn.items() if value is not None}
    return {f"{key} of turns" for key in keys - TURN_KEYS}


def normalise(
    rows: Iterable[Row], settings: Settings, processor: LlavaProcessor, workers: int
) -> Iterator[Kept | Dropped]:
    """What becomes of each row, in order; of many rows by ``workers`` processes."""
    numbered = enumerate(rows)
    alone = PARALLEL_FROM if workers > 1 else None
    one = Normaliser(settings, processor)
    yield from (one(number, row) for number, row in islice(numbered, alone))
    chunk = list(islice(numbered, CHUNK_ROWS))
    if not chunk:
        return
    # A fork of this process may hang, which has threads of tokenizers and pyarrow; one of a process
    # that has only imported may not, and spares each worker seconds of importing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start, (settings,)) as pool:
        waiting: deque[Future[list[Kept | Dropped]]] = deque()
        while chunk:
            waiting.append(pool.submit(_chunk, chunk))
            if len(waiting) == workers * CHUNKS_AHEAD:
                yield from waiting.popleft().result()
            chunk = list(islice(numbered, CHUNK_ROWS))
        while waiting:
            yield from waiting.popleft().result()


_normaliser: Normaliser  # of a worker process, set when it starts


def _start(settings: Settings) -> None:
    global _normaliser
    _normaliser = Normaliser(settings, LlavaProcessor.from_pretrained(settings.checkpoint))


def _chunk(rows: list[tuple[int, Row]]) -> list[Kept | Dropped]:
    return [_normaliser(number, row) for number, row in rows]
