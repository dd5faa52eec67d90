"""SEED-Bench-2-Plus (arXiv:2404.16790): text in charts, maps and web pages, answered by letter.

Layouts, the first that is there:

official files  ``seed_bench_2_plus/SEED-Bench-2-plus-text-rich.json`` and the pictures that its
                ``data_id`` names below that folder; their names there are recalled, not checked
hub copy        ``hub/seed_bench_2_plus``, split test, of doolayer/SEED-Bench-2-Plus

Groups: chart, map, web. Prompt: form L in every profile, LLaVA-1.5 having none of its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metrics import seed
from eval.metrics.rules import pick
from eval.readers.choices import letter, option
from eval.readers.fields import inside, label, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import lettered, of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

FOLDER = "seed_bench_2_plus"
LAYOUTS: dict[str, Layout] = {
    "official files": {"questions": (f"{FOLDER}/SEED-Bench-2-plus-text-rich.json",)},
    "hub copy": {"test rows": hub("seed_bench_2_plus", "test-*", "test/*")},
}
CHOICES = ("choice_A", "choice_B", "choice_C", "choice_D")
COLUMNS = ("question_id", "question", *CHOICES, "answer", "question_image_type", "image")
MAX_NEW_TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read the first of ``LAYOUTS`` that is there."""
    max_new_tokens = of_profile("seed_bench_2_plus", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "seed_bench_2_plus", LAYOUTS)
    samples = _hub_rows(root, found) if found.layout == "hub copy" else _questions(root, found)
    rule = pick(seed.RULES, profile)
    return Task(
        name="seed_bench_2_plus",
        version=1,
        description=f"text in charts, maps and web pages, by letter; {found.layout}",
        samples=tuple(samples),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=max_new_tokens,
        expected_n=2277,
    )


def _hub_rows(root: Path, found: Found) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["test rows"], COLUMNS):
        yield _sample(where, row, keep_picture(root, where, row["image"]))


def _questions(root: Path, found: Found) -> list[Sample]:
    path = found.one("questions")
    samples = []
    for number, row in enumerate(read_json(path)["questions"], start=1):
        where = f"{path}:question {number}"
        picture = inside(where, root / FOLDER, text(where, row, "data_id"))
        samples.append(_sample(where, row, picture))
    all_there((sample.images[0] for sample in samples), f"  {root / FOLDER}/ and its data_id")
    return samples


def _sample(where: str, row: Mapping[str, Any], picture: Path) -> Sample:
    options = tuple(option(where, row, name) for name in CHOICES)
    return Sample(
        id=label(where, row, "question_id"),
        prompt=lettered(text(where, row, "question"), options),
        references=(letter(where, row, "answer", options),),
        images=(picture,),
        options=options,
        group=text(where, row, "question_image_type").lower(),
    )
