"""What the tests of check share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep import check
from tests.data_prep.painter import Painter

ROWS = 600  # of the planted set


def run(folder: Path, *options: str, file: str = "mix.json", report: str | None = None) -> Any:
    root = str(folder / "pictures")
    argv = [str(folder / file), "--root", root, "--workers", "2", *options]
    return check.run(check.parse([*argv, "--report", str(folder / (report or f"{file}.check"))]))


def good_set(folder: Path, num_rows: int = 9) -> list[dict[str, Any]]:
    """Rows without a fault and their pictures."""
    (folder / "pictures" / "vg").mkdir(parents=True)
    painter = Painter(seed=1)
    rows = []
    for number in range(num_rows):
        file = f"vg/{number}.jpg"
        (folder / "pictures" / file).write_bytes(painter.jpeg())
        turns = [("human", f"<image>\nWhat is {number}?"), ("gpt", "A box.")]
        conversations = [{"from": speaker, "value": text} for speaker, text in turns]
        rows.append({"id": str(number), "image": file, "conversations": conversations})
    write(folder, rows)
    return rows


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "mix.json").write_text(json.dumps(rows))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
