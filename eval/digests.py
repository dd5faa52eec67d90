"""Which picture a file holds: the SHA-256 of its content, each file read once.

A picture of a table has its digest for a name (``eval.readers.pictures``). Those of other files are
kept in ``DATA_ROOT/.pictures/digests.json`` by path below the root, with the state of the file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from eval.readers.memory import FOLDER, kept_digest, recall, remember, state
from eval.store import Record

INDEX = "digests.json"


def picture_digests(pictures: Iterable[Path], root: Path | None) -> dict[Path, str]:
    """The digest of each picture in hex; without ``root`` nothing is recalled or kept."""
    found: dict[Path, str] = {}
    others = []
    for picture in dict.fromkeys(pictures):
        if digest := kept_digest(picture):
            found[picture] = digest
        else:
            others.append(picture)
    if root is None:
        return found | {picture: _digest(picture) for picture in others}
    return found | _of_files(others, root)


def _of_files(pictures: Iterable[Path], root: Path) -> dict[Path, str]:
    index = root / FOLDER / INDEX
    known, new = recall(index), Record()
    found = {}
    for picture in pictures:
        name, now = picture.relative_to(root).as_posix(), state(picture)
        entry = known.get(name)
        if entry is None or entry["state"] != now:
            # The state is that before the reading: a change meanwhile shows the next time.
            entry = new[name] = {"state": now, "sha256": _digest(picture)}
        found[picture] = entry["sha256"]
    if new:
        remember(index, recall(index) | new)
    return found


def _digest(picture: Path) -> str:
    with picture.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
