"""What MME-RealWorld-lite and -CN (arXiv:2408.13257) share: rows to samples.

Layouts, the first that is there:

official files  a JSON list with ``Question_id``, ``Text``, ``Answer choices`` ("(A) ...", five),
                ``Ground truth``, ``Image`` (below the same folder), ``Task``, ``Subtask``
hub copy        of lmms-eval: ``index``, ``question``, ``multi-choice options``, ``answer``,
                ``category`` ("Perception/..." with the subtask last), ``bytes`` (base64)

The two name questions differently, so an id is the number of the row; that both have one order is
taken, not checked. Groups: subtasks; ``meta["task"]``: Perception or Reasoning.

Prompts: ``llava15`` as the benchmark's script for LLaVA-1.5 asks (model_vqa_mme_real_world.py);
``lmms`` differs in spaces alone, with one after the last colon.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.metrics import mme_realworld
from eval.metrics.rules import pick
from eval.readers.choices import letter, texts
from eval.readers.fields import inside, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import Sample, Task

COLUMNS = ("question", "multi-choice options", "answer", "category", "bytes")
MAX_NEW_TOKENS = {"llava15": 64, "lmms": 16, "libmoe": 16}


class Wording(NamedTuple):
    """What stands before the options, after them, and at the end."""

    head: str
    instruction: str
    end: str


class Part(NamedTuple):
    """What differs between the parts of the benchmark."""

    name: str
    folder: str
    file: str
    wordings: Mapping[str, Wording]  # by profile
    expected_n: int | None
    description: str


class Question(NamedTuple):
    """A row under names of our own."""

    where: str
    text: str
    choices: tuple[str, ...]  # "(A) text" to "(E) text"
    answer: str
    task: str
    subtask: str
    picture: Path


def load(part: Part, root: Path, profile: str) -> Task:
    """One part of the benchmark."""
    wording = of_profile(part.name, profile, part.wordings)
    layouts: dict[str, Layout] = {
        "official files": {"questions": (f"{part.folder}/{part.file}",)},
        "hub copy": {"rows": hub(part.name, "*")},
    }
    found = find_layout(root, part.name, layouts)
    rows = _hub_rows(root, found) if found.layout == "hub copy" else _questions(root, part, found)
    samples = tuple(_sample(number, wording, row) for number, row in enumerate(rows))
    all_there((sample.images[0] for sample in samples), f"  {root / part.folder}/ and its Image")
    rule = pick(mme_realworld.RULES, profile)
    return Task(
        name=part.name,
        version=1,
        description=f"{part.description}; {found.layout}",
        samples=samples,
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=MAX_NEW_TOKENS[profile],
        expected_n=part.expected_n,
    )


def _hub_rows(root: Path, found: Found) -> Iterator[Question]:
    for where, row in read_pictured(root, found.files["rows"], COLUMNS, pictures=["bytes"]):
        category = text(where, row, "category")
        yield Question(
            where,
            text(where, row, "question"),
            texts(where, row, "multi-choice options"),
            letter(where, row, "answer"),
            "Perception" if "perception" in category.lower() else "Reasoning",
            category.split("/")[-1],
            keep_picture(root, where, row["bytes"]),
        )


def _questions(root: Path, part: Part, found: Found) -> Iterator[Question]:
    path = found.one("questions")
    for number, row in enumerate(read_json(path), start=1):
        where = f"{path}:question {number}"
        yield Question(
            where,
            text(where, row, "Text"),
            texts(where, row, "Answer choices"),
            letter(where, row, "Ground truth"),
            text(where, row, "Task"),
            text(where, row, "Subtask"),
            inside(where, root / part.folder, text(where, row, "Image")),
        )


def _sample(number: int, wording: Wording, row: Question) -> Sample:
    head = f"{row.text} {wording.head}"
    return Sample(
        id=str(number),
        prompt="\n".join([head, *row.choices, wording.instruction, wording.end]),
        references=(row.answer,),
        images=(row.picture,),
        options=_texts(row.where, row.choices),
        group=row.subtask,
        meta={"task": row.task},
    )


def _texts(where: str, choices: Sequence[str]) -> tuple[str, ...]:
    for name, choice in zip(mme_realworld.LETTERS, choices, strict=False):
        if not choice.startswith(f"({name})"):
            raise ValueError(f"{where}: the option {choice!r} must begin with ({name})")
    return tuple(choice[len("(A)") :].strip() for choice in choices)
