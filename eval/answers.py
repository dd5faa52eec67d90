"""A few pictures with the question, the model's answer and the truth, right and wrong mixed."""

from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from eval.plan import RIGHT
from eval.readers import read_jsonl
from eval.store import Record, read_results, read_run
from llava_compete.data import ImageFolder
from llava_compete.report.blocks import Card, Gallery

PICTURES = 6
THUMBNAIL = 320  # pixels of the longer side


def gallery(prefix: str, directory: Path, data_root: Path | None) -> Gallery:
    """Six samples of a run, the files of their first pictures named ``prefix-1.png`` and so on.

    ``data_root`` is where the pictures lie now, if they were moved since the run.
    """
    root = data_root or Path(read_run(directory)["arguments"]["data_root"])
    results = read_results(directory)
    rows = {name: _judged(directory, name, task) for name, task in results["tasks"].items()}
    cards = [
        Card(
            name=f"{prefix}-{place}.png",
            png=_thumbnail(root, row["images"][0], row["id"]),
            question=row["prompt"],
            answer=row["text"].strip() or "(nothing)",
            truth=" / ".join(dict.fromkeys(row["references"])),
            right=right,
            source=f"{task} {row['id']}",
        )
        for place, (task, row, right) in enumerate(choose(rows, PICTURES), start=1)
    ]
    return Gallery(tuple(cards))


def _judged(directory: Path, name: str, task: Record) -> list[tuple[Record, bool]]:
    """Samples with their own picture and whether the answer was right, half a point upwards."""
    path = directory / "samples" / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"no {path}: `python -m eval score {directory}` writes it")
    headline = task["headline"]
    return [
        (row, row["values"][headline] >= 0.5)
        for _, row in read_jsonl(path)
        if row["condition"] == RIGHT and row["images"] and headline in row["values"]
    ]


def choose(
    rows: dict[str, list[tuple[Record, bool]]], count: int
) -> list[tuple[str, Record, bool]]:
    """``count`` samples, tasks in turn, right and wrong in turn as far as there are both.

    Among the samples of a task the order is that of a hash, so neither the file's order nor the
    answers decide; a picture comes again only where no other is left.
    """
    left = {
        (task, right): sorted(
            (row for row, was in judged if was == right),
            key=lambda row: sha256(f"{task}:{row['id']}".encode()).hexdigest(),
        )
        for task, judged in rows.items()
        for right in (True, False)
    }
    chosen: list[tuple[str, Record, bool]] = []
    turn = 0
    while len(chosen) < count and any(left.values()):
        for place, task in enumerate(rows):
            right = (place + turn) % 2 == 0
            if left[task, right] and len(chosen) < count:
                chosen.append((task, _next(left[task, right], chosen), right))
        turn += 1
    return chosen


def _next(left: list[Record], chosen: Sequence[tuple[str, Record, bool]]) -> Record:
    seen = {row["images"][0] for _, row, _ in chosen}
    fresh = [place for place, row in enumerate(left) if row["images"][0] not in seen]
    return left.pop(fresh[0] if fresh else 0)


def _thumbnail(root: Path, name: str, sample: str) -> bytes:
    if not (root / name).is_file():
        raise ValueError(
            f"sample {sample}: no picture {root / name}; say where the pictures lie now by "
            f"--data_root"
        )
    image: Any = ImageFolder(root).open(name, sample)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
