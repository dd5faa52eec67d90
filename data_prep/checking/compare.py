"""What is there twice: ids, rows and pictures. Digests lie in numpy arrays, not in objects.

R rows, P pictures, M members of groups, G groups.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_prep.checking.findings import DIGEST_BYTES, ChunkFindings, RowFinding, digest_of

ONE, PAIR = np.dtype(f"S{DIGEST_BYTES}"), np.dtype(f"S{2 * DIGEST_BYTES}")
NO_ID = bytes(DIGEST_BYTES)


@dataclass(frozen=True)
class Groups:
    """Things that are alike, two or more a group, ascending; groups in order of their first one.

    ``members`` int64 (M,); ``starts`` int64 (G + 1,), where each group begins in ``members``.
    """

    members: np.ndarray
    starts: np.ndarray

    def firsts(self, size: int) -> np.ndarray:
        """int64 (size,): for each thing the first of its group, -1 where it is in none."""
        firsts = np.full(size, -1)
        lengths = np.diff(self.starts)
        firsts[self.members] = np.repeat(self.members[self.starts[:-1]], lengths)
        return firsts

    def __iter__(self) -> Iterator[list[int]]:
        for begin, end in itertools.pairwise(self.starts.tolist()):
            yield self.members[begin:end].tolist()


class Doubles(NamedTuple):
    """Rows by their number, pictures by their place in the order of their first rows.

    ``repeated`` int64 (R,) is the first row with the same id and the same content, -1 for a row
    that is the first of its like. Only such rows are in ``same_id`` and ``same_content``.
    """

    repeated: np.ndarray
    same_id: Groups
    same_content: Groups
    same_picture: Groups
    num_pictures: int


def compare(findings: Iterable[ChunkFindings]) -> Doubles:
    """Compare all rows and pictures; goes through ``findings`` twice.

    A row's content is its conversation and the bytes of its pictures, whatever their names are.
    """
    pictures = _Pictures(findings)
    digests = bytearray()
    for chunk in findings:
        for row in chunk.rows:
            digests += bytes.fromhex(row.id) or NO_ID
            digests += _content(row, pictures.digests_of(row.files))
    ids, contents = np.frombuffer(digests, ONE).reshape(-1, 2).T
    has_id = ids != ONE.type(NO_ID)
    same_row = groups_of(np.frombuffer(digests, PAIR), has_id)
    repeated = same_row.firsts(len(ids))
    repeated[repeated == np.arange(len(ids))] = -1
    new = repeated < 0
    return Doubles(
        repeated=repeated,
        same_id=groups_of(ids, new & has_id),
        same_content=groups_of(contents, new),
        same_picture=groups_of(pictures.digests, np.ones(len(pictures.digests), dtype=bool)),
        num_pictures=len(pictures.digests),
    )


def groups_of(keys: np.ndarray, kept: np.ndarray) -> Groups:
    """Groups of equal ``keys`` (n,) among the places where ``kept`` (n,) is true."""
    places = np.flatnonzero(kept)
    _, first, inverse, counts = np.unique(
        keys[places], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[inverse]
    order = np.argsort(group, kind="stable")
    order = order[counts[inverse[order]] > 1]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return Groups(places[order], np.append(starts, len(order)))


def _content(row: RowFinding, pictures: Sequence[bytes]) -> bytes:
    hasher = hashlib.blake2b(bytes.fromhex(row.turns), digest_size=DIGEST_BYTES)
    for picture in pictures:
        hasher.update(picture)
    return hasher.digest()


class _Pictures:
    """``digests`` S16 (P,) of what the pictures' files hold, found by the files' names."""

    def __init__(self, findings: Iterable[ChunkFindings]) -> None:
        names, digests = bytearray(), bytearray()
        for picture in (picture for chunk in findings for picture in chunk.pictures):
            names += bytes.fromhex(digest_of(picture.file))
            digests += bytes.fromhex(picture.digest)
        self.digests = np.frombuffer(digests, ONE)
        unsorted = np.frombuffer(names, ONE)
        self._order = np.argsort(unsorted)
        self._names = unsorted[self._order]

    def digests_of(self, files: Sequence[str]) -> list[bytes]:
        wanted = np.frombuffer(b"".join(bytes.fromhex(digest_of(f)) for f in files), ONE)
        places = self._order[np.searchsorted(self._names, wanted)]
        return [self.digests[place : place + 1].tobytes() for place in places]
