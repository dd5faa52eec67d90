"""A user's own set: rows of questions, answers and pictures, and the name of a scoring rule.

``DATA_ROOT/own/task.json`` describes it::

    {"rows": "questions.jsonl", "rule": "exact_match", "prompt": "short", "max_new_tokens": 16}

rows             JSON lines, or a parquet or arrow file, in the same folder
rule             one of ``RULES``; "none" keeps the answers without a score
variant          a name in the rule's own table, as "m4c" of vqa_accuracy; without one the profile's
                 where the rule has profiles, else its default
prompt           "as_is" (default; the question is the whole prompt), "short" (form S) or "lettered"
                 (form L, which takes options)
max_new_tokens   default 128
description      default "a set of one's own"

A row has ``question``; ``answer``, a text, or ``answers``, a list of them (the letter, for a rule
that reads one); ``image`` or a list ``images``, each a path inside the folder or, in a table, the
picture itself; and, where wanted, ``id`` (default: its number from 1 on), ``options``, a list of
texts, and ``group``. A row without ``image`` and ``images`` has no picture.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from eval import unscored
from eval.metrics import (
    ai2d,
    anls,
    choice,
    exact_match,
    gqa,
    mmmu,
    realworldqa,
    relaxed_accuracy,
    seed,
    vqa_accuracy,
    yes_no,
)
from eval.metrics.letters import offered
from eval.metrics.rules import Rule, pick
from eval.readers import read_jsonl
from eval.readers.fields import inside, label, read_json, text
from eval.readers.layouts import TABLES, all_there, find
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, lettered, of_profile, short
from eval.readers.tables import Row, holds_texts
from eval.task import DEFAULT_PROFILE, Sample, Task

PROFILES = {"llava15": "llava15", "lmms": "lmms", "libmoe": "libmoe"}
LAYOUT = "  DATA_ROOT/own/task.json, and the rows and pictures it names in the same folder"
KEYS = ("rows", "rule", "variant", "prompt", "max_new_tokens", "description")
COLUMNS = ("id", "question", "answer", "answers", "image", "images", "options", "group")
PICTURES = ("image", "images")  # of the columns
PROMPTS = ("as_is", "short", "lettered")
BY_LETTER = ("ai2d", "choice", "seed")


class Named(NamedTuple):
    """A rule, the metric to quote, and the rule's own table where it has one."""

    rule: Rule
    headline: str
    variants: Mapping[str, Rule] = MappingProxyType({})


RULES = {
    "ai2d": Named(Rule(ai2d.score, ai2d.aggregate), "accuracy"),
    "anls": Named(Rule(anls.score, anls.aggregate), "anls"),
    "choice": Named(choice.RULES["llava15"], "accuracy", choice.RULES),
    "exact_match": Named(Rule(exact_match.score, exact_match.aggregate), "exact_match"),
    "gqa": Named(gqa.RULES["llava15"], "exact_match", gqa.RULES),
    "mmmu": Named(mmmu.RULES["llava15"], "accuracy", mmmu.RULES),
    "none": Named(Rule(unscored.score, unscored.aggregate), "none"),
    "realworldqa": Named(realworldqa.RULES["llava15"], "exact_match", realworldqa.RULES),
    "relaxed_accuracy": Named(
        Rule(relaxed_accuracy.score, relaxed_accuracy.aggregate), "relaxed_accuracy"
    ),
    "seed": Named(seed.RULES["llava15"], "accuracy", seed.RULES),
    "vqa_accuracy": Named(
        vqa_accuracy.RULES["always_normalise"], "vqa_accuracy", vqa_accuracy.RULES
    ),
    "yes_no": Named(Rule(yes_no.score, yes_no.aggregate), "accuracy"),
}


class Settings(NamedTuple):
    """What ``task.json`` says, its defaults filled in."""

    rows: Path
    rule: str
    variant: str | None
    prompt: str
    max_new_tokens: int
    description: str


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/own/task.json`` and the rows it names."""
    profile = of_profile("own", profile, PROFILES)
    path = find(root, ["own/task.json"], LAYOUT)
    settings = _settings(path)
    samples = tuple(_samples(root, settings))
    all_there((image for sample in samples for image in sample.images), LAYOUT)
    rule = _rule(path, settings, profile)
    return Task(
        name="own",
        version=1,
        description=settings.description,
        samples=samples,
        score=rule.score,
        aggregate=rule.aggregate,
        headline=RULES[settings.rule].headline,
        max_new_tokens=settings.max_new_tokens,
        unscored="its rule is none" if settings.rule == "none" else "",
    )


def _settings(path: Path) -> Settings:
    given = read_json(path)
    if not isinstance(given, dict):
        raise ValueError(f"{path}: a JSON object was expected, not {type(given).__name__}")
    if unknown := sorted(set(given) - set(KEYS)):
        raise ValueError(f"{path}: unknown keys {unknown}; there are {', '.join(KEYS)}")
    tokens = given.get("max_new_tokens", 128)
    if not isinstance(tokens, int):
        raise ValueError(f"{path}: max_new_tokens={tokens!r} must be a whole number")
    settings = Settings(
        rows=inside(str(path), path.parent, text(str(path), given, "rows")),
        rule=text(str(path), given, "rule"),
        variant=given.get("variant"),
        prompt=given.get("prompt", "as_is"),
        max_new_tokens=tokens,
        description=given.get("description", "a set of one's own"),
    )
    _check(path, "rule", settings.rule, RULES)
    _check(path, "prompt", settings.prompt, PROMPTS)
    return settings


def _check(path: Path, name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{path}: {name}={value!r} must be one of {', '.join(known)}")


def _rule(path: Path, settings: Settings, profile: str) -> Rule:
    named = RULES[settings.rule]
    if settings.variant is None:
        return named.variants.get(profile, named.rule)
    if not named.variants:
        raise ValueError(f"{path}: the rule {settings.rule} has no variants")
    return pick(named.variants, settings.variant)


def _samples(root: Path, settings: Settings) -> Iterator[Sample]:
    path = settings.rows
    if not path.is_file():
        find(root, [path.relative_to(root).as_posix()], LAYOUT)
    rows = _table_rows(root, path) if path.suffix in TABLES else read_jsonl(path)
    for number, (where, given) in enumerate(rows, start=1):
        row = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(set(row) - set(COLUMNS)):
            raise ValueError(f"{where}: unknown fields {unknown}; there are {', '.join(COLUMNS)}")
        options = _texts(where, row, "options")
        sample = Sample(
            id=label(where, row, "id") if "id" in row else str(number),
            prompt=_prompt(where, text(where, row, "question"), options, settings.prompt),
            references=_references(where, row, settings.rule),
            images=tuple(_pictures(root, where, row, path.parent)),
            options=options,
            group=text(where, row, "group") if "group" in row else "",
        )
        if settings.rule in BY_LETTER and sample.references[0] not in tuple(offered(sample)):
            raise ValueError(
                f"{where}: the rule {settings.rule} wants an option's letter, of "
                f"{offered(sample)!r}, for an answer; it is {sample.references[0]!r}"
            )
        yield sample


def _table_rows(root: Path, path: Path) -> Iterator[tuple[str, Row]]:
    # A text in a column of pictures names a file.
    pictures = [name for name in PICTURES if not holds_texts(path, name)]
    return read_pictured(root, [path], ["question"], COLUMNS, pictures)


def _prompt(where: str, question: str, options: tuple[str, ...], form: str) -> str:
    if form == "lettered":
        if not options:
            raise ValueError(f"{where}: the prompt is lettered, but the row has no options")
        return lettered(question, options)
    return short(question, SHORT) if form == "short" else question


def _references(where: str, row: Mapping[str, Any], rule: str) -> tuple[str, ...]:
    if ("answer" in row) + ("answers" in row) > 1:
        raise ValueError(f"{where}: the row has both answer and answers; one of them is needed")
    answers = _texts(where, row, "answers")
    if "answer" in row:
        answers = (label(where, row, "answer"),)
    if not answers and rule != "none":
        raise ValueError(f"{where}: the row has neither answer nor answers; it has {sorted(row)}")
    if rule == "yes_no":
        answers = tuple(answer.lower() for answer in answers)
        if answers[0] not in ("yes", "no"):
            raise ValueError(f"{where}: answer={answers[0]!r} must be yes or no")
    return answers


def _pictures(root: Path, where: str, row: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    cells = row.get("images", [])
    if not isinstance(cells, list):
        raise ValueError(f"{where}: images={cells!r} must be a list")
    for cell in [*([row["image"]] if "image" in row else []), *cells]:
        if isinstance(cell, str):
            yield inside(where, folder, cell)
        else:
            yield keep_picture(root, where, cell)


def _texts(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = row.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: {name}={values!r} must be a list of texts")
    return tuple(values)
