"""Pictures with the question, the model's answer and the truth, right and wrong of each task."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from eval.plan import RIGHT
from eval.readers import read_jsonl
from eval.rows import status
from eval.store import Record, read_results, read_run
from eval.task import ANSWER_LOSS
from llava_compete.data import ImageFolder
from llava_compete.report.blocks import Block, Card, Gallery, Heading, Paragraph

HALF = 0.5  # of a value from 0 to 1: right from here upwards
PICTURES = 4  # of a task
THUMBNAIL = 320  # pixels of the longer side


def galleries(prefix: str, directory: Path, data_root: Path | None) -> Iterator[Block]:
    """For each task of a run a heading and some samples, with what makes an answer right.

    The files of the pictures are named ``prefix-TASK-1.png`` and so on. ``data_root`` is where
    they lie now, if they were moved since the run.
    """
    root = data_root or Path(read_run(directory)["arguments"]["data_root"])
    results = read_results(directory)
    for name, task in results["tasks"].items():
        yield Heading(f"{name}, {status(task, results['limit'])}", 4)
        if "unscored" in task:
            yield Paragraph(f"Neither right nor wrong here, {task['unscored']}.")
            continue
        judged = _judged(directory, name, task)
        if not judged:
            yield Paragraph("No answer to a question with a picture.")
            continue
        yield Paragraph(f"Right is an answer whose {judged[0].value} is {HALF} or more.")
        yield Gallery(tuple(_cards(f"{prefix}-{name}", name, choose(judged, name), root)))


class Judged(NamedTuple):
    """A sample with its own picture, the name of its value, and whether the answer was right."""

    row: Record
    value: str
    right: bool


def _cards(prefix: str, name: str, chosen: Sequence[Judged], root: Path) -> Iterator[Card]:
    for place, (row, _, right) in enumerate(chosen, start=1):
        yield Card(
            name=f"{prefix}-{place}.png",
            png=_thumbnail(root, row["images"][0], row["id"]),
            question=row["prompt"],
            answer=row["text"].strip() or "(nothing)",
            truth=" / ".join(dict.fromkeys(row["references"])),
            right=right,
            source=f"{name} {row['id']}",
        )


def _judged(directory: Path, name: str, task: Record) -> list[Judged]:
    path = directory / "samples" / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"no {path}: `python -m eval score {directory}` writes it")
    judged = []
    for _, row in read_jsonl(path):
        value = sample_value(row["values"], task["headline"])
        if row["condition"] == RIGHT and row["images"] and value is not None:
            judged.append(Judged(row, value, row["values"][value] >= HALF))
    return judged


def sample_value(values: Mapping[str, float], headline: str) -> str | None:
    """The name of what the rule gave one answer; None where it gave nothing.

    That is the headline where it is a mean over samples, else, as with MME's points or POPE's F1,
    the first by name beside a measured loss.
    """
    if headline in values:
        return headline
    return min((name for name in values if name != ANSWER_LOSS), default=None)


def choose(judged: Sequence[Judged], task: str, count: int = PICTURES) -> list[Judged]:
    """``count`` samples, right and wrong in turn as far as there are both.

    Their order is that of a hash, so neither the file's order nor the answers decide; a picture
    comes again only where no other is left.
    """
    ordered = sorted(judged, key=lambda j: sha256(f"{task}:{j.row['id']}".encode()).hexdigest())
    left = {right: [one for one in ordered if one.right == right] for right in (True, False)}
    chosen: list[Judged] = []
    while len(chosen) < count and any(left.values()):
        wanted = len(chosen) % 2 == 0
        chosen.append(_next(left[wanted] or left[not wanted], chosen))
    return chosen


def _next(left: list[Judged], chosen: Sequence[Judged]) -> Judged:
    seen = {one.row["images"][0] for one in chosen}
    fresh = [place for place, one in enumerate(left) if one.row["images"][0] not in seen]
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
