"""Fields of a row: there and of the type that is needed, or a ValueError that says so.

``where`` is the place of the row, as ``read_jsonl`` and ``read_table`` give it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The value of a JSON file; ValueError where it is none."""
    try:
        with in_utf8(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error


@contextmanager
def in_utf8(path: Path) -> Iterator[None]:
    """ValueError that names the file where what is read inside is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error})") from error


def field(where: str, row: Mapping[str, Any], name: str) -> Any:
    """What the row has under ``name``."""
    if name not in row:
        raise ValueError(f"{where}: {name!r} is missing; the row has {sorted(row)}")
    return row[name]


def text(where: str, row: Mapping[str, Any], name: str) -> str:
    """A text that is not empty, as it stands."""
    value = field(where, row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name}={value!r} must be a text that is not empty")
    return value


def label(where: str, row: Mapping[str, Any], name: str) -> str:
    """A name or number, such as an id, as a text: files disagree on 7 and "7"."""
    value = field(where, row, name)
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{where}: {name}={value!r} must be a text or a whole number")
    return str(value)


def yes_or_no(where: str, row: Mapping[str, Any], name: str) -> str:
    """An answer that is yes or no, in lower case."""
    value = text(where, row, name).strip().lower().rstrip(".")
    if value not in ("yes", "no"):
        raise ValueError(f"{where}: {name}={row[name]!r} must be yes or no")
    return value


def inside(where: str, folder: Path, name: str) -> Path:
    """The path of ``name`` below ``folder``; ValueError where it leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: {name!r} must stay inside {folder}")
    return path
