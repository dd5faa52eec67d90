"""HallusionBench: questions about figures, some of them edited; scored by string rule.

Prompt, all profiles: form N. The questions without a picture are left out, as lmms-eval does. The
benchmark's own score is a judge's; ``metrics/hallusion.py`` says what the string rule is.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metrics import hallusion
from eval.readers.fields import field, inside, label, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "the authors' file": {"questions": ("hallusionbench/HallusionBench.json",)},
    "hub copy": {"tables": hub("hallusionbench", "image-*", "image/*")},
}
PICTURES = "  DATA_ROOT/hallusionbench/hallusion_bench/{VD,VS}/SUBCATEGORY/*.png"
PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
ANSWERS = {"1": "yes", "0": "no"}
TOKENS = {"llava15": 128, "lmms": 128, "libmoe": 128}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/hallusionbench`` or ``root/hub/hallusionbench``; ``group`` is the category."""
    tokens = of_profile("hallusionbench", profile, TOKENS)
    found = find_layout(root, "hallusionbench", LAYOUTS)
    read = _hub if "tables" in found.files else _authors
    return Task(
        name="hallusionbench",
        version=1,
        description=f"questions about figures, some of them edited ({found.layout})",
        samples=tuple(read(root, found)),
        score=hallusion.score,
        aggregate=hallusion.aggregate,
        headline=hallusion.VALUE,
        max_new_tokens=tokens,
        expected_n=951,
    )


def _authors(root: Path, found: Found) -> Iterator[Sample]:
    path = found.one("questions")
    folder = root / "hallusionbench/hallusion_bench"
    samples = []
    for number, row in enumerate(read_json(path), start=1):
        where = f"{path}:row {number}"
        if field(where, row, "filename"):
            image = inside(where, folder, text(where, row, "filename"))
            samples.append(_sample(where, row, image))
    all_there((image for sample in samples for image in sample.images), PICTURES)
    yield from samples


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    columns = (*PLACE, "question", "gt_answer", "image")
    for where, row in read_pictured(root, found.files["tables"], columns):
        yield _sample(where, row, keep_picture(root, where, row["image"]))


def _sample(where: str, row: Mapping[str, Any], image: Path) -> Sample:
    place = {name: label(where, row, name) for name in PLACE}
    answer = label(where, row, "gt_answer")
    if answer not in ANSWERS:
        raise ValueError(f"{where}: gt_answer={answer!r} must be 1 (yes) or 0 (no)")
    return Sample(
        id="_".join(place.values()),
        prompt=text(where, row, "question"),
        references=(ANSWERS[answer],),
        images=(image,),
        group=place["category"],
        meta=place,
    )
