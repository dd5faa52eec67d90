"""MMStar (arXiv:2403.20330): 1,500 questions that need the picture, answered by letter.

The release is a parquet file: ``index``, ``question`` with its options, ``image``, ``answer``,
``category`` (the group), ``l2_category``. Options stand in the question's text and are not taken
apart, so no chance level is given.

Prompts: the question, then LLaVA's instruction for letters; ``lmms`` and ``libmoe`` end it without
a period, as lmms-eval does.
"""

from pathlib import Path

from eval.metrics import mmstar
from eval.readers.choices import letter
from eval.readers.fields import label, text
from eval.readers.layouts import Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import LETTER, of_profile, short
from eval.readers.tables import Row
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {"hub copy": {"rows": hub("mmstar", "*")}}
COLUMNS = ("index", "question", "image", "answer", "category", "l2_category")
BARE = LETTER.rstrip(".")
INSTRUCTIONS = {"llava15": LETTER, "lmms": BARE, "libmoe": BARE}
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/hub/mmstar``."""
    instruction = of_profile("mmstar", profile, INSTRUCTIONS)
    found = find_layout(root, "mmstar", LAYOUTS)
    rows = read_pictured(root, found.files["rows"], COLUMNS)
    return Task(
        name="mmstar",
        version=1,
        description=f"six abilities that need the picture, by letter; {found.layout}",
        samples=tuple(_sample(root, instruction, *row) for row in rows),
        score=mmstar.score,
        aggregate=mmstar.aggregate,
        headline="l2_mean",
        max_new_tokens=MAX_NEW_TOKENS[profile],
        expected_n=1500,
    )


def _sample(root: Path, instruction: str, where: str, row: Row) -> Sample:
    return Sample(
        id=label(where, row, "index"),
        prompt=short(text(where, row, "question").strip(), instruction),
        references=(letter(where, row, "answer"),),
        images=(keep_picture(root, where, row["image"]),),
        group=text(where, row, "category"),
        meta={"l2_category": text(where, row, "l2_category")},
    )
