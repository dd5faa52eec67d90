"""What was found out about files below the data root, kept there in the folder ``.pictures``.

Pictures of tables lie there too, each under its digest (``eval.readers.pictures``). A file of JSON
is there whole or not at all, so processes may write it at once: the last one's stays, and what it
lacks is found out again. Where the data root cannot be written to, nothing is kept.
"""

import json
import os
import re
from pathlib import Path

from eval.store import Record, write_json

FOLDER = ".pictures"
DIGEST = re.compile(r"[0-9a-f]{64}")


def kept_digest(picture: Path) -> str | None:
    """The digest that a kept picture has for a name; None of any other file."""
    kept = picture.parent.name == FOLDER and DIGEST.fullmatch(picture.stem)
    return picture.stem if kept else None


def recall(file: Path) -> Record:
    """What ``remember`` wrote; nothing where it did not. ValueError where it is no JSON."""
    try:
        known: Record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not a JSON file ({error}); delete it to make it anew") from error
    return known


def remember(file: Path, known: Record) -> None:
    """Write ``known``, unless the place cannot be written to."""
    there = next(folder for folder in file.parents if folder.is_dir())
    if os.access(there, os.W_OK):
        write_json(file, known)


def state(file: Path) -> list[int]:
    """Size and time of change; a file that was changed has another.

    Not so one whose content changed, whose size did not, and whose time was set back.
    """
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]
