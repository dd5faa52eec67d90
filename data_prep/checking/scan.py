"""Every row and every picture looked at once, by several processes; results in order of rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_prep.checking.findings import (
    Chunk,
    ChunkFindings,
    digest_of,
    files_of,
    inspect_chunk,
)
from data_prep.checking.journal import Journal
from llava_compete.data.files import read_rows

CHUNK_ROWS = 64
AHEAD = 4  # chunks that are read for each worker before it asks for them


class Pool(NamedTuple):
    """Processes to give chunks to."""

    executor: Executor
    workers: int


@contextmanager
def worker_pool(workers: int) -> Iterator[Pool]:
    """Processes that end with this one, however it ends.

    All are forked at once: enter before this process opens files that it locks or starts threads.
    """
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=fork, initializer=_end_with_parent)
    try:
        pool.submit(os.getpid).result()
        yield Pool(pool, workers)
    finally:
        pool.shutdown(cancel_futures=True)


def count_rows(file: Path) -> int:
    """Rows of ``file``, all of which are parsed: a file that is cut is refused before the work."""
    return sum(1 for _ in tqdm(read_rows(file), desc=f"reading {file.name}", disable=None))


def scan(
    file: Path, root: Path, linked_folders: Sequence[Path], journal: Journal, pool: Pool
) -> None:
    """Look at the chunks of ``file`` that ``journal`` does not hold yet."""
    done = min(journal.num_chunks * CHUNK_ROWS, journal.num_rows)
    with tqdm(
        total=journal.num_rows, initial=done, desc=f"checking {file.name}", disable=None
    ) as bar:
        todo = islice(chunks_of(file), journal.num_chunks, None)
        for findings in _in_order(pool, todo, root, linked_folders):
            journal.append(findings)
            bar.update(len(findings.rows))


def chunks_of(file: Path) -> Iterator[Chunk]:
    """The rows of ``file``; a picture belongs to the first chunk that names it.

    What was named is kept as 16 bytes a picture.
    """
    seen: set[bytes] = set()
    rows = iter(read_rows(file))
    first = 0
    while chunk := list(islice(rows, CHUNK_ROWS)):
        new: list[str] = []
        for name in (name for row in chunk for name in files_of(row)):
            if (digest := bytes.fromhex(digest_of(name))) not in seen:
                seen.add(digest)
                new.append(name)
        yield Chunk(first, chunk, new)
        first += len(chunk)


def _in_order(
    pool: Pool, chunks: Iterable[Chunk], root: Path, linked_folders: Sequence[Path]
) -> Iterator[ChunkFindings]:
    waiting: deque[tuple[int, Future[ChunkFindings]]] = deque()
    for chunk in chunks:
        future = pool.executor.submit(inspect_chunk, chunk, root, linked_folders)
        waiting.append((chunk.first, future))
        if len(waiting) > pool.workers * AHEAD:
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _result(first: int, future: Future[ChunkFindings]) -> ChunkFindings:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"a worker died while the rows from {first} on were checked (out of memory?): start "
            f"again with fewer --workers; what was checked so far is kept"
        ) from error


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
