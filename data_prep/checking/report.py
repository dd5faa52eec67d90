"""The lists of a check, a line a fault or note. All of it follows from the journal and the repairs.

A fault is what training stops at or is misled by; a note is what it gets along with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from data_prep.checking.compare import Doubles, Groups
from data_prep.checking.findings import WRONG_EXTENSION, ChunkFindings, PictureFinding, RowFinding

Line = dict[str, Any]


class Found(NamedTuple):
    """What the lists are made of; ``journal`` is gone through several times."""

    journal: Iterable[ChunkFindings]
    doubles: Doubles
    repaired: Collection[str]  # files of pictures
    unique_ids: bool  # is a repeated id a fault?


def faults(found: Found) -> Iterator[Line]:
    """By row: row, id, source, kind, message; file and repaired where it is a picture's.

    Faulty pictures are held by their name, everything else streams.
    """
    pictures: dict[str, PictureFinding] = {}
    repeated = found.doubles.repeated
    same_id = found.doubles.same_id.firsts(len(repeated))
    for chunk in found.journal:
        pictures.update((p.file, p) for p in chunk.pictures if p.kind not in ("", WRONG_EXTENSION))
        for row in chunk.rows:
            if row.kind:
                yield _line(row, row.kind, row.message)
            for file in dict.fromkeys(row.files):
                if file in pictures:
                    line = _line(row, pictures[file].kind, pictures[file].message)
                    yield line | {"file": file, "repaired": file in found.repaired}
            if (first := int(repeated[row.number])) >= 0:
                yield _line(row, "repeated_row", f"the same id, turns and pictures as row {first}")
            elif found.unique_ids and -1 < (first := int(same_id[row.number])) < row.number:
                yield _line(row, "repeated_id", f"the same id as row {first}")


def notes(found: Found) -> Iterator[Line]:
    """Wrong extensions, pictures of several names, repeated ids and contents, unknown keys."""
    yield from _notes_of_pictures(found)
    doubles = found.doubles
    if not found.unique_ids:
        yield from _notes_of_rows(found, "repeated_id", doubles.same_id)
    yield from _notes_of_rows(found, "repeated_content", doubles.same_content)
    unknown_keys: Counter[str] = Counter()
    for chunk in found.journal:
        unknown_keys.update(chunk.unknown_keys)
    for key, count in sorted(unknown_keys.items()):
        yield {"kind": "unknown_key", "key": key, "rows": count}


def _notes_of_rows(found: Found, kind: str, groups: Groups) -> Iterator[Line]:
    """A line a group: the numbers of its rows, and the first one's id."""
    members = iter(groups)
    group = next(members, None)
    for row in (row for chunk in found.journal for row in chunk.rows):
        if group is None:
            return
        if row.number == group[0]:
            yield {"kind": kind, "rows": group, "id": row.name}
            group = next(members, None)


def _notes_of_pictures(found: Found) -> Iterator[Line]:
    """Pictures of the wrong extension as they come, then those of several names, held till then."""
    pictures = (picture for chunk in found.journal for picture in chunk.pictures)
    names: dict[int, list[str]] = {group[0]: [] for group in found.doubles.same_picture}
    firsts = found.doubles.same_picture.firsts(found.doubles.num_pictures)
    for place, picture in enumerate(pictures):
        if picture.kind == WRONG_EXTENSION:
            line = {"kind": picture.kind, "file": picture.file, "message": picture.message}
            yield line | {"repaired": picture.file in found.repaired}
        if (first := int(firsts[place])) >= 0:
            names[first].append(picture.file)
    for files in names.values():
        yield {"kind": "same_picture", "files": files}


def _line(row: RowFinding, kind: str, message: str) -> Line:
    return {
        "row": row.number,
        "id": row.name,
        "source": row.source,
        "kind": kind,
        "message": message,
    }
