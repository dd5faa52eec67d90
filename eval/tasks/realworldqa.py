"""RealWorldQA (xAI, 2024): questions on photographs of streets and rooms.

The hub copy alone is read: ``question``, which ends in the data set's own instruction, ``answer``
(a letter, a word or a number), ``image``. Lines of the question such as "A. left" are its options.
Rows have no id of their own; it is their number. The prompt is the question in every profile. The
number of rows is that of the hub's page.
"""

import re
from pathlib import Path

from eval.metrics import realworldqa
from eval.metrics.rules import pick
from eval.readers.fields import text
from eval.readers.layouts import Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.readers.tables import Row
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {"hub copy": {"test rows": hub("realworldqa", "test-*", "test/*")}}
COLUMNS = ("question", "answer", "image")
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}
OPTION = re.compile(r"^([A-Z])\. +(.*\S)", re.MULTILINE)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/hub/realworldqa``, split test."""
    max_new_tokens = of_profile("realworldqa", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "realworldqa", LAYOUTS)
    rule = pick(realworldqa.RULES, profile)
    rows = read_pictured(root, found.files["test rows"], COLUMNS)
    return Task(
        name="realworldqa",
        version=1,
        description=f"photographs, by letter, word or number; {found.layout}",
        samples=tuple(_sample(root, n, where, row) for n, (where, row) in enumerate(rows)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="exact_match",
        max_new_tokens=max_new_tokens,
        expected_n=765,
    )


def _sample(root: Path, number: int, where: str, row: Row) -> Sample:
    question = text(where, row, "question").strip()
    return Sample(
        id=str(number),
        prompt=question,
        references=(text(where, row, "answer").strip(),),
        images=(keep_picture(root, where, row["image"]),),
        options=_options(question),
    )


def _options(question: str) -> tuple[str, ...]:
    found = OPTION.findall(question)
    # Only a run A, B, ... is a list of options; "A. Smith" alone is none.
    in_order = all(letter == chr(ord("A") + place) for place, (letter, _) in enumerate(found))
    return tuple(option for _, option in found) if len(found) > 1 and in_order else ()
