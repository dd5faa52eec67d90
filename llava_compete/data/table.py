"""The rows of a data file with their lengths, in a file that processes map into memory together.

N rows that can be used.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import LlavaProcessor

from llava_compete.data.encode import processor_fingerprint
from llava_compete.data.exclude import read_exclusions
from llava_compete.data.measuring import MAX_WORKERS, TABLE_VERSION, LeftOut, write_table


class SourceCounts(NamedTuple):
    """What a training takes of one source; rows that lost turns may have their answer cut, too."""

    rows: int  # that are used
    tokens: int  # of them, images included, after max_length
    lost_turns: int  # rows that lost exchanges to max_length
    answers_cut: int  # rows whose only answer left lost its end
    excluded: int  # rows that the exclusion file names
    refused: int  # rows of which max_length leaves nothing to learn


class RowTable:
    """N rows: Arrow columns in a mapped file, so that no process holds them as Python objects.

    Columns are ``row`` (JSON text), ``number`` (in the data file, from 0), ``length`` and
    ``full_length`` (tokens after and before max_length), ``exchanges_dropped``, ``answer_cut``,
    ``source`` and ``id``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as source:
            self._batch = pa.ipc.open_file(source).get_batch(0)
        self._rows = self._batch.column("row")
        self._numbers = self._batch.column("number").to_numpy()
        self.lengths: NDArray[np.int32] = self._batch.column("length").to_numpy()
        self.left_out = LeftOut.from_json(self._batch.schema.metadata[b"left_out"].decode())

    @classmethod
    def open(
        cls,
        file: Path,
        processor: LlavaProcessor,
        max_length: int | None,
        *,
        exclude: Path | None = None,
        cache_dir: Path | None = None,
        num_workers: int | None = None,
    ) -> "RowTable":
        """The table of a data file, made where it is not in ``cache_dir``.

        Another file at that path, processor, ``max_length`` or exclusions make another table.
        ``num_workers`` processes measure a long file; None: one a core, MAX_WORKERS at most.
        ValueError for a faulty row and where no row is left.
        """
        if not file.is_file():
            raise ValueError(f"data file {file} does not exist")
        exclusions = read_exclusions(exclude, file) if exclude is not None else []
        fingerprint = processor_fingerprint(processor)
        stat = file.stat()
        key = {
            "version": TABLE_VERSION,
            "file": str(file.resolve()),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "processor": fingerprint,
            "max_length": max_length,
            "exclusions": exclusions,
        }
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
        folder = default_cache_dir() if cache_dir is None else cache_dir
        path = folder / f"{file.stem}-{digest}.arrow"
        if not path.is_file():
            write_table(
                path,
                file,
                processor,
                max_length,
                {exclusion.row: exclusion for exclusion in exclusions},
                num_workers=_cores() if num_workers is None else num_workers,
                fingerprint=fingerprint,
                stat=(stat.st_size, stat.st_mtime_ns),
            )
        return cls(path)

    def __reduce__(self) -> tuple[type["RowTable"], tuple[Path]]:
        return RowTable, (self.path,)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        """The row as it stands in the data file."""
        return json.loads(self._rows[index].as_py())

    def number(self, index: int) -> int:
        """Which row of the data file it is, from 0."""
        return int(self._numbers[index])

    def fingerprint(self) -> str:
        """Of the rows, their order and their lengths, wherever the data file lies."""
        digest = hashlib.sha256()
        for name in ("row", "length"):
            for buffer in self._batch.column(name).buffers():
                digest.update(buffer or b"")
        return f"{len(self)} rows, {digest.hexdigest()[:20]}"

    def summary(self) -> dict[str, SourceCounts]:
        """Counts by source, the sources with most rows first."""
        column = self._batch.column("source")
        names = column.dictionary.to_pylist()
        sources_N = column.indices.to_numpy()
        weights: Mapping[str, NDArray[Any]] = {
            "rows": np.ones(len(self), dtype=bool),
            "tokens": self.lengths,
            "lost_turns": self._batch.column("exchanges_dropped").to_numpy() > 0,
            "answers_cut": self._batch.column("answer_cut").to_numpy(zero_copy_only=False),
        }
        counted = {"excluded": self.left_out.excluded, "refused": self.left_out.refused}
        for name, of_N in weights.items():
            sums = np.bincount(sources_N, of_N, len(names)).astype(int).tolist()
            counted[name] = Counter(dict(zip(names, sums, strict=True)))
        found = {
            source: SourceCounts(**{name: counts[source] for name, counts in counted.items()})
            for source in {*names, *self.left_out.excluded, *self.left_out.refused}
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1].rows, item[0])))


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def default_cache_dir() -> Path:
    """``rows`` below LLAVA_COMPETE_CACHE, by default ~/.cache/llava_compete."""
    return (
        Path(os.environ.get("LLAVA_COMPETE_CACHE", "~/.cache/llava_compete")).expanduser() / "rows"
    )
