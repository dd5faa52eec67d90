"""POPE: is the thing in the picture?  Three categories over the same COCO pictures.

Prompt, all profiles: form S. Rules: ``metrics/pope.py``. LLaVA's question file goes with POPE's
files at the commit it used, whose random category has 2,910 questions, hence 8,910 in all; the hub
copy has 3,000 of each.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.metrics import pope
from eval.metrics.rules import pick
from eval.readers import read_jsonl
from eval.readers.fields import inside, label, text, yes_or_no
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

CATEGORIES = ("random", "popular", "adversarial")
LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions, POPE's labels": {
        "questions": ("pope/llava_pope_test.jsonl",),
        **{kind: (f"pope/coco/coco_pope_{kind}.json",) for kind in CATEGORIES},
    },
    "hub copy": {"tables": hub("pope", "test-*", "*")},
}
PICTURES = "  DATA_ROOT/pope/val2014/COCO_val2014_*.jpg"
EXPECTED = dict(zip(LAYOUTS, (8910, 9000), strict=True))
HEADLINES = {"llava15": "f1_mean", "lmms": "accuracy", "libmoe": "accuracy"}
COLUMNS = ("question_id", "question", "answer", "category", "image")


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/pope`` or ``root/hub/pope``; ``group`` is the category."""
    headline = of_profile("pope", profile, HEADLINES)
    found = find_layout(root, "pope", LAYOUTS)
    read = _hub if "tables" in found.files else _llava
    rule = pick(pope.RULES, profile)
    return Task(
        name="pope",
        version=1,
        description=f"is the thing in the picture? ({found.layout})",
        samples=tuple(read(root, found)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline=headline,
        max_new_tokens=128,
        expected_n=EXPECTED[found.layout],
    )


def _llava(root: Path, found: Found) -> Iterator[Sample]:
    labels = {}
    for kind in CATEGORIES:
        for where, row in read_jsonl(found.one(kind)):
            key = kind, text(where, row, "image"), text(where, row, "text").strip()
            labels[key] = label(where, row, "question_id"), yes_or_no(where, row, "label")
    folder = root / "pope/val2014"
    samples = []
    for where, row in read_jsonl(found.one("questions")):
        question = text(where, row, "text").removesuffix(SHORT).strip()
        kind, name = text(where, row, "category"), text(where, row, "image")
        if (kind, name, question) not in labels:
            raise ValueError(
                f"{where}: no label in coco_pope_{kind}.json for {question!r} about {name}: are "
                f"POPE's files those of the commit that LLaVA used?"
            )
        number, answer = labels[kind, name, question]
        samples.append(_sample(kind, number, question, answer, inside(where, folder, name)))
    all_there((image for sample in samples for image in sample.images), PICTURES)
    yield from samples


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        yield _sample(
            text(where, row, "category"),
            label(where, row, "question_id"),
            text(where, row, "question").strip(),
            yes_or_no(where, row, "answer"),
            keep_picture(root, where, row["image"]),
        )


def _sample(kind: str, number: str, question: str, answer: str, image: Path) -> Sample:
    return Sample(f"{kind}/{number}", short(question), (answer,), (image,), group=kind)
