"""AI2D (arXiv:1603.07396): questions on diagrams of school science, answered by letter.

The hub copy alone is read: its pictures have the boxes drawn in that the questions name, which the
first release has not. Columns ``question``, ``options``, ``answer`` (a place from 0 on), ``image``.
Rows have no id of their own; it is their number. Prompt: form L in every profile, LLaVA-1.5 having
none of its own.
"""

from pathlib import Path

from eval.metrics import ai2d
from eval.readers.choices import letter_of_index, texts
from eval.readers.fields import text
from eval.readers.layouts import Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import lettered, of_profile
from eval.readers.tables import Row
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {"hub copy": {"test rows": hub("ai2d", "test-*", "test/*")}}
COLUMNS = ("question", "options", "answer", "image")
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/hub/ai2d``, split test."""
    max_new_tokens = of_profile("ai2d", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "ai2d", LAYOUTS)
    rows = read_pictured(root, found.files["test rows"], COLUMNS)
    return Task(
        name="ai2d",
        version=1,
        description=f"science diagrams, by letter; {found.layout}",
        samples=tuple(_sample(root, n, where, row) for n, (where, row) in enumerate(rows)),
        score=ai2d.score,
        aggregate=ai2d.aggregate,
        headline="accuracy",
        max_new_tokens=max_new_tokens,
        expected_n=3088,
    )


def _sample(root: Path, number: int, where: str, row: Row) -> Sample:
    options = texts(where, row, "options")
    return Sample(
        id=str(number),
        prompt=lettered(text(where, row, "question"), options),
        references=(letter_of_index(where, row, "answer", options),),
        images=(keep_picture(root, where, row["image"]),),
        options=options,
    )
