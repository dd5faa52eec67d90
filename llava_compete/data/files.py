"""Data files: their rows, one after the other."""

import json
from pathlib import Path
from typing import Any


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a LLaVA JSON or JSONL file; ValueError naming the line of a broken one."""
    if not file.is_file():
        raise ValueError(f"data file {file} does not exist")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                rows.append(_parse(line, f"{file} line {number}"))
    else:
        rows = _parse(text, str(file))
        if not isinstance(rows, list):
            raise ValueError(
                f"{file}: a LLaVA file is a JSON list of rows, found {type(rows).__name__}"
            )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}: row {number} must be an object, found {row!r:.80}")
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
