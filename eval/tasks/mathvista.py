"""MathVista testmini: questions about figures, a number, a list or a choice wanted.

Prompt: llava15 takes the data set's own ``query`` (a hint, the question, choices as "(A) ..."),
since LLaVA-1.5 has none; lmms and libmoe put the question with its unit, choices as "A. ...", and
the instruction for the answer's type last. The benchmark's own score needs a judge to extract the
answer; ``metrics/mathvista.py`` says what a rule makes of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metrics import mathvista
from eval.readers.fields import field, inside, label, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import LETTER, of_profile, option_lines
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "the authors' file": {"questions": ("mathvista/data/testmini.json", "mathvista/testmini.json")},
    "hub copy": {"tables": hub("mathvista", "testmini-*", "testmini/*")},
}
PICTURES = "  DATA_ROOT/mathvista/images/*.jpg"
COLUMNS = (
    *("pid", "question", "choices", "unit", "precision", "answer"),
    *("question_type", "answer_type", "metadata", "query"),
)
INSTRUCTIONS = {
    ("integer", None): "Answer the question using a single integer number.",
    (
        "float",
        1,
    ): "Answer the question using a single floating-point number with one decimal place.",
    ("float", 2): "Answer the question using a single floating-point number with two decimal "
    "places.",
    ("list", None): "Answer the question using a Python list.",
}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mathvista`` or ``root/hub/mathvista``; ``group`` is the data set's task."""
    prompts = {"llava15": _query, "lmms": _formatted, "libmoe": _formatted}
    prompt = of_profile("mathvista", profile, prompts)
    found = find_layout(root, "mathvista", LAYOUTS)
    read = _hub if "tables" in found.files else _authors
    return Task(
        name="mathvista",
        version=1,
        description=f"questions about figures, answers by rule ({found.layout})",
        samples=tuple(
            Sample(
                id=label(where, row, "pid"),
                prompt=prompt(where, row),
                references=(label(where, row, "answer"),),
                images=(image,),
                options=tuple(row["choices"] or ()),
                group=text(where, row["metadata"], "task"),
                meta=_meta(where, row),
            )
            for where, row, image in read(root, found)
        ),
        score=mathvista.score,
        aggregate=mathvista.aggregate,
        headline="rule_accuracy",
        max_new_tokens=1024,
        expected_n=1000,
    )


def _authors(root: Path, found: Found) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
    path = found.one("questions")
    rows = []
    for pid, row in read_json(path).items():
        where = f"{path}:{pid}"
        for name in COLUMNS:
            field(where, row, name)
        image = inside(where, root / "mathvista", text(where, row, "image"))
        rows.append((where, row, image))
    all_there((image for _, _, image in rows), PICTURES)
    yield from rows


def _hub(root: Path, found: Found) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
    for where, row in read_pictured(
        root, found.files["tables"], (*COLUMNS, "decoded_image"), pictures=["decoded_image"]
    ):
        yield where, row, keep_picture(root, where, row["decoded_image"])


def _meta(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question_type": text(where, row, "question_type"),
        "answer_type": text(where, row, "answer_type"),
        "precision": precision(row),
    }


def precision(row: Mapping[str, Any]) -> int | None:
    """Digits behind the point; the hub copy has them as a float."""
    return None if row["precision"] is None else int(row["precision"])


def _query(where: str, row: Mapping[str, Any]) -> str:
    return text(where, row, "query")


def _formatted(where: str, row: Mapping[str, Any]) -> str:
    unit = f" (Unit: {row['unit']})" if row["unit"] else ""
    return "\n".join(
        [
            text(where, row, "question") + unit,
            *option_lines(row["choices"] or ()),
            _instruction(where, row),
        ]
    )


def _instruction(where: str, row: Mapping[str, Any]) -> str:
    if row["question_type"] == "multi_choice":
        return LETTER
    wanted = row["answer_type"]
    key = wanted, precision(row) if wanted == "float" else None
    if key not in INSTRUCTIONS:
        raise ValueError(
            f"{where}: no instruction for answer_type={wanted!r} with precision={key[1]}; there "
            f"are those for {sorted(INSTRUCTIONS, key=str)}"
        )
    return INSTRUCTIONS[key]
