"""DocVQA (arXiv:2007.00398), val: questions about a page of a document.

Prompt: form S in all profiles. Score: ANLS. The test split is scored by its server alone:
``docvqa_test``. InfoVQA has the same files but for their names and is read from here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from eval import unscored
from eval.metrics import anls
from eval.metrics.rules import Rule
from eval.readers.annotations import in_order, read_rows, texts
from eval.readers.fields import inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

COLUMNS = ("questionId", "question", "image")
SERVER = "the answers of test are with the Robust Reading Competition's server"
TOKENS = {"llava15": 128, "lmms": 128, "libmoe": 128}  # lmms: as in the versions read


class Split(NamedTuple):
    """One split of DocVQA or InfoVQA: its files, where its pictures lie, and how long it is."""

    name: str
    description: str
    layouts: dict[str, Layout]
    image: str  # the annotation's name of the picture
    folders: tuple[str, ...]
    expected_n: int
    tokens: dict[str, int]
    answered: bool = True


VAL = Split(
    name="docvqa",
    description="questions about pages of documents, val",
    layouts={
        "official files": {"rows": ("docvqa/val_v1.0*.json", "docvqa/*/val_v1.0*.json")},
        "hub copy": {"tables": hub("docvqa", "DocVQA/validation-*", "validation-*")},
    },
    image="image",
    folders=("docvqa/documents", "docvqa/spdocvqa_images", "docvqa/val/documents"),
    expected_n=5349,
    tokens=TOKENS,
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/docvqa`` or ``root/hub/docvqa``."""
    return task_of(root, profile, VAL)


def task_of(root: Path, profile: str, split: Split) -> Task:
    """The task of a split; without answers its samples have no references and no score."""
    tokens = of_profile(split.name, profile, split.tokens)
    found = find_layout(root, split.name, split.layouts)
    read: Callable[..., Iterator[Sample]] = _hub if "tables" in found.files else _official
    answered = Rule(anls.score, anls.aggregate)
    rule = answered if split.answered else Rule(unscored.score, unscored.aggregate)
    return Task(
        name=split.name,
        version=1,
        description=f"{split.description} ({found.layout})",
        samples=in_order(split.name, read(root, found, split)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="anls",
        max_new_tokens=tokens,
        expected_n=split.expected_n,
        unscored="" if split.answered else SERVER,
    )


def _official(root: Path, found: Found, split: Split) -> Iterator[Sample]:
    there = (root / name for name in split.folders if (root / name).is_dir())
    folder = next(there, root / split.folders[0])
    samples = []
    for where, row in read_rows(found.one("rows"), "data"):
        name = PurePosixPath(text(where, row, split.image)).name
        samples.append(_sample(where, row, inside(where, folder, name), split))
    places = "\n".join(f"  DATA_ROOT/{name}/*" for name in split.folders)
    all_there((sample.images[0] for sample in samples), places)
    yield from samples


def _hub(root: Path, found: Found, split: Split) -> Iterator[Sample]:
    columns = (*COLUMNS, "answers") if split.answered else COLUMNS
    for where, row in read_pictured(root, found.files["tables"], columns):
        yield _sample(where, row, keep_picture(root, where, row["image"]), split)


def _sample(where: str, row: dict[str, Any], image: Path, split: Split) -> Sample:
    references = texts(where, row, "answers") if split.answered else ()
    if split.answered and not references:
        raise ValueError(f"{where}: answers are empty; {split.name} needs one at least")
    name = label(where, row, "questionId")
    return Sample(name, short(text(where, row, "question")), references, (image,))
