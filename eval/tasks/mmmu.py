"""MMMU (arXiv:2311.16502), split validation: college questions of 30 subjects, the groups.

Read are rows of parquet or arrow: the release, ``mmmu/SUBJECT/validation-*``, or the hub copy that
has all subjects in one. Samples are ordered by id, ``validation_SUBJECT_N``, so both give the same.
``options`` is the literal of a list; a question of type open has none, and its answer may be such a
literal too. The pictures that question and options name, "<image 1>", are shown in the order of
their numbers, and the placeholders stay in the text. MMMU's own script shows LLaVA ``image_1``
alone.

Prompts: ``llava15`` as MMMU's script asks LLaVA-1.5, options as "(A) text" and a blank line before
the instruction for a letter (taken from public copies of its configuration); ``lmms`` has options
as "A. text" and a blank line before both instructions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from eval.metrics import mmmu
from eval.metrics.rules import pick
from eval.readers.choices import letter, texts
from eval.readers.fields import text
from eval.readers.layouts import Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import LETTER, SHORT, of_profile, option_lines
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "release": {"validation rows": ("mmmu/**/validation-*.parquet", "mmmu/**/validation-*.arrow")},
    "hub copy": {"validation rows": hub("mmmu", "*validation-*", "validation/*")},
}
PICTURES = tuple(f"image_{number}" for number in range(1, 8))
NAMED = re.compile(r"<image (\d+)>")
COLUMNS = ("id", "question", "options", "answer", "question_type", *PICTURES)
OPEN = "open"
ID = re.compile(r"[a-z]+_(.+)_(\d+)")
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}

Put = Callable[[str, Sequence[str]], str]


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mmmu``, else ``root/hub/mmmu``."""
    put = of_profile("mmmu", profile, {"llava15": _llava, "lmms": _lmms, "libmoe": _lmms})
    found = find_layout(root, "mmmu", LAYOUTS)
    rule = pick(mmmu.RULES, profile)
    rows = read_pictured(root, found.files["validation rows"], COLUMNS, pictures=PICTURES)
    samples = tuple(_sample(root, put, where, row) for where, row in rows)
    return Task(
        name="mmmu",
        version=1,
        description=f"college questions, by letter or open; {found.layout}",
        samples=tuple(sorted(samples, key=_order)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=MAX_NEW_TOKENS[profile],
        expected_n=900,
    )


def named_pictures(
    root: Path, where: str, row: Mapping[str, Any], question: str, options: Sequence[str]
) -> tuple[Path, ...]:
    """The pictures that the texts name, in the order of their numbers."""
    numbers = sorted({int(number) for number in NAMED.findall("\n".join([question, *options]))})
    if not numbers or numbers[-1] > len(PICTURES):
        raise ValueError(f"{where}: it names the pictures {numbers}; some of 1 to 7 were expected")
    return tuple(
        keep_picture(root, f"{where}, image_{number}", row[f"image_{number}"]) for number in numbers
    )


def _sample(root: Path, put: Put, where: str, row: Mapping[str, Any]) -> Sample:
    name, question = text(where, row, "id"), text(where, row, "question")
    parts = ID.fullmatch(name)
    if parts is None:
        raise ValueError(f"{where}: id={name!r} must be like validation_Art_Theory_12")
    is_open = row["question_type"] == OPEN
    options = () if is_open else texts(where, row, "options")
    return Sample(
        id=name,
        prompt=put(question, options),
        references=_open_answers(where, row)
        if is_open
        else (letter(where, row, "answer", options),),
        images=named_pictures(root, where, row, question, options),
        options=options,
        group=parts[1],
    )


def _open_answers(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    answer = text(where, row, "answer")
    return texts(where, row, "answer") if answer.startswith("[") else (answer,)


def _order(sample: Sample) -> tuple[str, int]:
    parts = ID.fullmatch(sample.id)
    assert parts is not None  # checked when the sample was made
    return parts[1], int(parts[2])


def _llava(question: str, options: Sequence[str]) -> str:
    if not options:
        return f"{question}\n{SHORT}"
    letters = zip(ascii_uppercase, options, strict=False)
    return "\n".join([question, *(f"({name}) {option}" for name, option in letters), "", LETTER])


def _lmms(question: str, options: Sequence[str]) -> str:
    if not options:
        return f"{question}\n\n{SHORT}"
    return "\n".join([question, *option_lines(options), "", LETTER])
