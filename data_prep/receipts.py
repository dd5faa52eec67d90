"""What `fetch` has put below a root, one JSON file a source; whether it is still there whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = ".fetch"  # below the root: receipts, and downloads under way


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Where a source came from and each file that it left, path relative to the root -> bytes."""

    source: str
    origin: str  # address, or data set and commit
    downloads: dict[str, dict[str, int | str]]  # file -> size, sha256
    num_files: int
    files: dict[str, int]


def write(root: Path, key: str, receipt: Receipt) -> None:
    write_json(_place(root, key), asdict(receipt))


def read(root: Path, key: str) -> Receipt | None:
    """The receipt of the source ``key``; None if there is none."""
    place = _place(root, key)
    return Receipt(**json.loads(place.read_text())) if place.is_file() else None


def damaged(root: Path, receipt: Receipt) -> Iterator[str]:
    """The files of ``receipt`` that are missing or of another size.

    A picture is whole too whose content `check --repair` has put beside it under its true name.
    """
    for name, size in receipt.files.items():
        path = root / name
        if _size(path) != size and not _kept_beside(path, size):
            yield name


def write_json(place: Path, content: object) -> None:
    """Whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(place.name + ".new")
    aside.write_text(json.dumps(content))
    aside.replace(place)


def _place(root: Path, key: str) -> Path:
    return root / FOLDER / f"{key}.json"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kept_beside(path: Path, size: int) -> bool:
    if not path.is_file():
        return False
    siblings = path.parent.glob(f"{path.stem}.*")
    return any(_size(other) == size for other in siblings if other != path)
