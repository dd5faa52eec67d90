"""SEED-Bench (arXiv:2307.16125): pictures and videos, answered by letter.  Groups: image, video.

Layouts, the first that is there:

LLaVA's files  ``seed_bench/llava-seed-bench.jsonl`` (prompts, pictures) joined by question id with
               the official ``seed_bench/SEED-Bench.json`` (answers)
hub copy       ``hub/seed_bench``, split test; a video is a list of frames

LLaVA shows the frame in the middle of a video. Of the hub's frames ``llava15`` shows the middle one
(of eight the fourth), ``lmms`` and ``libmoe`` all, as lmms-eval does; LLaVA's files have one only.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.metrics import seed
from eval.metrics.rules import pick
from eval.readers.choices import letter, option
from eval.readers.fields import inside, label, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import lettered, of_profile
from eval.readers.questions import read_jsonl
from eval.task import DEFAULT_PROFILE, Sample, Task

FOLDER = "seed_bench"
LAYOUTS: dict[str, Layout] = {
    "LLaVA's files": {
        "questions": (f"{FOLDER}/llava-seed-bench.jsonl",),
        "answers": (f"{FOLDER}/SEED-Bench.json",),
    },
    "hub copy": {"test rows": hub("seed_bench", "test-*", "test/*")},
}
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
COLUMNS = ("question_id", "question", *CHOICES, "answer", "data_type", "image")
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


class Question(NamedTuple):
    """A row, where it stands, what is shown of it and LLaVA's own prompt, if any."""

    where: str
    row: Mapping[str, Any]
    images: tuple[Path, ...]
    prompt: str | None = None


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read the first of ``LAYOUTS`` that is there."""
    max_new_tokens = of_profile("seed_bench", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "seed_bench", LAYOUTS)
    rule = pick(seed.RULES, profile)
    return Task(
        name="seed_bench",
        version=1,
        description=f"pictures and videos, by letter; {found.layout}",
        samples=tuple(_sample(*question) for question in questions(root, found, profile)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=max_new_tokens,
    )


def questions(
    root: Path, found: Found, profile: str, columns: Sequence[str] = COLUMNS
) -> Iterator[Question]:
    """Every question; ``columns`` are those that a hub copy must have."""
    if found.layout == "hub copy":
        return _hub_rows(root, found, profile, columns)
    return _joined(root, found)


def _hub_rows(root: Path, found: Found, profile: str, columns: Sequence[str]) -> Iterator[Question]:
    for where, row in read_pictured(root, found.files["test rows"], columns):
        frames = row["image"] or []
        if profile == "llava15":
            middle = max(0, len(frames) - 1) // 2
            frames = frames[middle : middle + 1]
        if not frames:
            raise ValueError(f"{where}: the list of its pictures is empty")
        yield Question(where, row, tuple(keep_picture(root, where, frame) for frame in frames))


def _joined(root: Path, found: Found) -> Iterator[Question]:
    rows = {str(row["question_id"]): row for row in read_json(found.one("answers"))["questions"]}
    asked = dict(_asked(root, found.one("questions")))
    if apart := sorted(rows.keys() ^ asked.keys()):
        raise ValueError(
            f"{found.one('questions')} and {found.one('answers')} do not join: {len(apart)} "
            f"question ids stand in one of them alone, such as {apart[:5]}"
        )
    pictures = (picture for _, picture in asked.values())
    all_there(pictures, f"  {root / FOLDER}/SEED-Bench-image/, SEED-Bench-video-image/")
    for key, (prompt, picture) in asked.items():
        yield Question(f"{found.one('answers')}:{key}", rows[key], (picture,), prompt)


def _asked(root: Path, path: Path) -> Iterator[tuple[str, tuple[str, Path]]]:
    for where, row in read_jsonl(path):
        picture = inside(where, root / FOLDER, text(where, row, "image"))
        yield label(where, row, "question_id"), (text(where, row, "text"), picture)


def _sample(
    where: str, row: Mapping[str, Any], images: tuple[Path, ...], prompt: str | None
) -> Sample:
    options = tuple(option(where, row, name) for name in CHOICES)
    return Sample(
        id=label(where, row, "question_id"),
        prompt=lettered(text(where, row, "question"), options) if prompt is None else prompt,
        references=(letter(where, row, "answer", options),),
        images=images,
        options=options,
        group=text(where, row, "data_type"),
    )
