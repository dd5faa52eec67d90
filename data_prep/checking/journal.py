"""What a check has found so far, on disk: one line of JSON a chunk, in the order of the rows.

A check that is killed goes on from here, and the lists of its end are written from here, so that
they are the same whether it was killed or not.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.checking.findings import ChunkFindings, PictureFinding, RowFinding


class Journal:
    """An append-only file; a last line that a kill has torn is cut off when it is opened.

    ``num_rows`` is what the data file holds, 0 in a new journal until ``begin`` says it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"{path} is in use: another check of this file writes to the same report folder"
            ) from error
        self.num_rows = 0
        self.num_chunks = 0
        self._cut_torn_line()
        self._file.seek(0)
        header = self._file.readline()
        if header:
            self.num_rows = json.loads(header)["rows"]
            self.num_chunks = sum(1 for _ in self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def begin(self, num_rows: int) -> None:
        """Note how many rows there are; before the first chunk."""
        self._write({"rows": num_rows})
        self.num_rows = num_rows

    def append(self, findings: ChunkFindings) -> None:
        self._write(findings)
        self.num_chunks += 1

    def __iter__(self) -> Iterator[ChunkFindings]:
        """All chunks from the first on; may be gone through again."""
        with self.path.open("rb") as lines:
            next(lines)
            for line in lines:
                rows, pictures, unknown_keys = json.loads(line)
                yield ChunkFindings(
                    [RowFinding(*row) for row in rows],
                    [PictureFinding(*picture) for picture in pictures],
                    unknown_keys,
                )

    def remove(self) -> None:
        self.path.unlink()

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        self._file.truncate(whole)
