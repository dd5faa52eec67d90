"""MMMU-Pro (arXiv:2409.02813), standard with ten options: by letter.  Groups: subjects.

Read are the rows of config "standard (10 options)", split test, of the release (MMMU/MMMU_Pro):
``id``, ``question``, ``options`` (the literal of a list), ``answer``, ``subject``, ``image_1`` to
``image_7``. Pictures as in ``eval.tasks.mmmu``. Prompt in every profile: options as "A. text", a
blank line, and the release's own instruction.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.metrics import mmmu
from eval.metrics.rules import pick
from eval.readers.choices import letter, texts
from eval.readers.fields import text
from eval.readers.layouts import Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.prompts import of_profile, option_lines
from eval.task import DEFAULT_PROFILE, Sample, Task
from eval.tasks.mmmu import PICTURES, named_pictures

CONFIG = "standard (10 options)"
LAYOUTS: dict[str, Layout] = {"hub copy": {"test rows": hub("mmmu_pro", f"{CONFIG}/test-*")}}
COLUMNS = ("id", "question", "options", "answer", "subject", *PICTURES)
INSTRUCTION = "Answer with the option letter from the given choices directly."
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/hub/mmmu_pro/standard (10 options)``."""
    max_new_tokens = of_profile("mmmu_pro", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "mmmu_pro", LAYOUTS)
    rule = pick(mmmu.RULES, profile)
    rows = read_pictured(root, found.files["test rows"], COLUMNS, pictures=PICTURES)
    return Task(
        name="mmmu_pro",
        version=1,
        description=f"college questions with ten options, by letter; {found.layout}",
        samples=tuple(_sample(root, where, row) for where, row in rows),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=max_new_tokens,
        expected_n=1730,
    )


def _sample(root: Path, where: str, row: Mapping[str, Any]) -> Sample:
    question, options = text(where, row, "question"), texts(where, row, "options")
    return Sample(
        id=text(where, row, "id"),
        prompt="\n".join([question, *option_lines(options), "", INSTRUCTION]),
        references=(letter(where, row, "answer", options),),
        images=named_pictures(root, where, row, question, options),
        options=options,
        group=text(where, row, "subject"),
    )
