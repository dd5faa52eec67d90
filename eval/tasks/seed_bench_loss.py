"""SEED-Bench (arXiv:2307.16125) by its own protocol: the option that the model finds likeliest.

The question alone is put to the model, and its answer is the option of the lowest loss, as section
4.1 of the paper and the README beside its eval.py say. Scored as eval.py does: accuracy over all
questions and, as the groups, of each of the twelve types. A loss is the mean over an option's
tokens; what an interface of eval.py gives back, a mean or a sum, is that model's own matter.

Files, and the frames of a video by profile: as in ``eval.tasks.seed_bench``; a hub copy needs the
column ``question_type_id`` too. Names of the types: SEED-Bench.json's ``question_type``, as public
copies of it have them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics import seed
from eval.readers.choices import letter, option
from eval.readers.fields import field, label, text
from eval.readers.layouts import find_layout
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task
from eval.tasks.seed_bench import CHOICES, COLUMNS, LAYOUTS, Question, questions

NAME = "seed_bench_loss"
PROFILES = {"llava15": "llava15", "lmms": "lmms", "libmoe": "libmoe"}
TYPES = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read the first of ``seed_bench.LAYOUTS`` that is there."""
    profile = of_profile(NAME, profile, PROFILES)
    found = find_layout(root, NAME, LAYOUTS)
    columns = (*COLUMNS, "question_type_id")
    return Task(
        name=NAME,
        version=1,
        description=f"pictures and videos, the option of the lowest loss; {found.layout}",
        samples=tuple(_sample(question) for question in questions(root, found, profile, columns)),
        score=seed.score,
        aggregate=seed.aggregate,
        headline="accuracy",
        max_new_tokens=1,  # none is asked for
        ranked="texts",
    )


def _sample(question: Question) -> Sample:
    where, row = question.where, question.row
    options = tuple(option(where, row, name) for name in CHOICES)
    return Sample(
        id=label(where, row, "question_id"),
        prompt=text(where, row, "question"),
        references=(letter(where, row, "answer", options),),
        images=question.images,
        options=options,
        group=_type(where, row),
    )


def _type(where: str, row: Mapping[str, Any]) -> str:
    number = str(field(where, row, "question_type_id"))
    if not number.isdecimal() or not 1 <= int(number) <= len(TYPES):
        raise ValueError(
            f"{where}: question_type_id={number} must be a number from 1 to {len(TYPES)}"
        )
    return TYPES[int(number) - 1]
