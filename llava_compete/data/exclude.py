"""Rows that a training leaves out: a file beside the data that says which and why."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llava_compete.data.aside import written_aside

KEYS = {"data", "sha256", "rows", "excluded"}


class Exclusion(NamedTuple):
    """One row left out."""

    row: int  # its number in the data file, from 0
    id: str  # as rows.row_name names it
    reason: str


def write_exclusions(
    path: Path, data_file: Path, exclusions: Sequence[Exclusion], *, rows: int
) -> None:
    """Write the exclusions of a data file of ``rows`` rows; its content's SHA-256 stands with them.

    ValueError for a row that the file does not have or that is named twice.
    """
    _refuse_impossible(path, rows, exclusions)
    content = {
        "data": data_file.name,
        "sha256": sha256_of(data_file),
        "rows": rows,
        "excluded": [exclusion._asdict() for exclusion in exclusions],
    }
    with written_aside(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_exclusions(path: Path, data_file: Path) -> list[Exclusion]:
    """The exclusions, by row; ValueError where they were made for another content of the file.

    Whether each row has the id that is noted for it shows when the rows are read (RowTable).
    """
    if not path.is_file():
        raise ValueError(
            f"exclude={path} does not exist: `python -m data_prep check --drop` makes it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON or not UTF-8
        raise ValueError(f"exclusion file {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or set(content) != KEYS:
        raise ValueError(f"exclusion file {path} must be an object with the keys {sorted(KEYS)}")
    try:
        exclusions = [
            Exclusion(int(item["row"]), str(item["id"]), str(item["reason"]))
            for item in content["excluded"]
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"exclusion file {path}: 'excluded' must be a list of "
            f'{{"row": number, "id": text, "reason": text}}: {error!r}'
        ) from error
    if not isinstance(content["rows"], int):
        raise ValueError(f"exclusion file {path}: 'rows' must be a number, is {content['rows']!r}")
    _refuse_impossible(path, content["rows"], exclusions)
    if (found := sha256_of(data_file)) != content["sha256"]:
        raise ValueError(
            f"exclusion file {path} was made for another {content['data']} (sha256 "
            f"{content['sha256']!s:.12}...) than {data_file} (sha256 {found:.12}...): run "
            f"`python -m data_prep check --drop` on the file that is trained on"
        )
    return sorted(exclusions)


def sha256_of(file: Path) -> str:
    """Of the file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _refuse_impossible(path: Path, rows: int, exclusions: Sequence[Exclusion]) -> None:
    seen: set[int] = set()
    for exclusion in exclusions:
        if not 0 <= exclusion.row < rows or exclusion.row in seen:
            raise ValueError(
                f"exclusion file {path}: row {exclusion.row} is named twice or not one of the "
                f"{rows} rows"
            )
        seen.add(exclusion.row)
