"""What MMBench EN and CN (arXiv:2307.06281, split dev) share: rows to samples.

Each row holds one rotation of a question's options; rows whose index is the same modulo a million
are one question, and ``circular_accuracy`` asks for all of them. Layouts: the official TSV in
``mmbench/``, else the hub copy. An option that is empty or "nan" is absent, and with it all behind
it; in ``llava15`` "None" is absent too, as in LLaVA's loader. Groups: the categories.

Prompts: ``llava15`` puts the hint on a line, then form L. ``lmms`` puts hint, question and a line
that announces options behind one another, and a blank line before the instruction.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eval.metrics import mmbench
from eval.readers.choices import letter
from eval.readers.fields import text
from eval.readers.layouts import Found, Layout, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import lettered, of_profile, option_lines
from eval.readers.tables import read_tsv
from eval.task import Sample, Task

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
L2_NAMES = ("L2-category", "l2-category")  # the hub's two spellings; the TSV has the second
ABSENT = ("", "nan")
ABSENT_FOR_LLAVA = (*ABSENT, "none")
MAX_NEW_TOKENS = 1024


class Language(NamedTuple):
    """What differs between the benchmark's languages; ``rows`` by layout, as published."""

    name: str
    tsv: str
    rows: Mapping[str, int]
    instruction: str  # LLaVA's
    lmms_instruction: str
    announcement: str  # of the options, lmms-eval's


def load(language: Language, root: Path, profile: str) -> Task:
    """The benchmark in one language."""
    put = of_profile(language.name, profile, {"llava15": _llava, "lmms": _lmms, "libmoe": _lmms})
    layouts: dict[str, Layout] = {
        "official files": {"TSV": (f"mmbench/{language.tsv}",)},
        "hub copy": {"dev rows": hub(language.name, "dev-*", "dev/*")},
    }
    found = find_layout(root, language.name, layouts)
    absent = ABSENT_FOR_LLAVA if profile == "llava15" else ABSENT
    samples = (
        _sample(root, where, row, absent, lambda *parts: put(language, *parts))
        for where, row in _rows(root, found)
    )
    return Task(
        name=language.name,
        version=1,
        description=f"abilities, by letter, options rotated; {found.layout}",
        samples=tuple(samples),
        score=mmbench.score,
        aggregate=mmbench.aggregate,
        headline="circular_accuracy",
        max_new_tokens=MAX_NEW_TOKENS,
        expected_n=language.rows[found.layout],
    )


def _rows(root: Path, found: Found) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if found.layout == "official files":
        return read_tsv(found.one("TSV"), (*COLUMNS, L2_NAMES[1]))
    return read_pictured(root, found.files["dev rows"], COLUMNS, L2_NAMES)


def _sample(
    root: Path,
    where: str,
    row: Mapping[str, Any],
    absent: tuple[str, ...],
    put: Callable[[str, str, tuple[str, ...]], str],
) -> Sample:
    index = str(row["index"])
    if not index.isdecimal():
        raise ValueError(f"{where}: index={index!r} must be a whole number")
    hint = "" if _is_absent(row["hint"], ABSENT_FOR_LLAVA) else row["hint"]
    options = _options(row, absent)
    return Sample(
        id=index,
        prompt=put(hint, text(where, row, "question"), options),
        references=(letter(where, row, "answer"),),
        images=(keep_picture(root, where, row["image"]),),
        options=options,
        group=text(where, row, "category"),
        meta={"index": int(index), "l2_category": _l2_category(where, row)},
    )


def _l2_category(where: str, row: Mapping[str, Any]) -> str:
    return text(where, row, next((name for name in L2_NAMES if name in row), L2_NAMES[0]))


def _options(row: Mapping[str, Any], absent: tuple[str, ...]) -> tuple[str, ...]:
    options = []
    for name in "ABCD":
        if _is_absent(row[name], absent):
            break
        options.append(row[name])
    return tuple(options)


def _is_absent(cell: str | None, absent: tuple[str, ...]) -> bool:
    return cell is None or cell.strip().lower() in absent


def _llava(language: Language, hint: str, question: str, options: tuple[str, ...]) -> str:
    asked = f"{hint}\n{question}" if hint else question
    return lettered(asked, options, language.instruction)


def _lmms(language: Language, hint: str, question: str, options: tuple[str, ...]) -> str:
    asked = f"{hint} {question}" if hint else question
    head = f"{asked} {language.announcement}"
    return "\n".join([head, *option_lines(options), "", language.lmms_instruction])
