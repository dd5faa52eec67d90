"""GQA (arXiv:1902.09506), testdev balanced: one short answer about a picture and its relations.

Prompt: form S in all profiles; in the official layout ``llava15`` takes LLaVA's text as it stands.
Score: exact match, ``metrics/gqa.py``. ``group`` is the question's structural type.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.metrics import gqa
from eval.readers import read_jsonl
from eval.readers.annotations import Way, hold_same, in_order, read_values
from eval.readers.fields import field, inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile, short
from eval.readers.tables import read_table
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions, official answers": {
        "questions": ("gqa/llava_gqa_testdev_balanced.jsonl",),
        "answers": ("gqa/data/testdev_balanced_questions.json",),
    },
    "hub copy": {
        "questions": hub("gqa", "testdev_balanced_instructions/*"),
        "pictures": hub("gqa", "testdev_balanced_images/*"),
    },
}
PICTURES = "  DATA_ROOT/gqa/data/images/*.jpg"
COLUMNS = ("id", "imageId", "question", "answer", "types")
WAYS = {
    "llava15": Way(gqa.RULES["llava15"], 128),
    "lmms": Way(gqa.RULES["lmms"], 16),
    "libmoe": Way(gqa.RULES["libmoe"], 16),
}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/gqa`` or ``root/hub/gqa``."""
    way = of_profile("gqa", profile, WAYS)
    found = find_layout(root, "gqa", LAYOUTS)
    samples = _hub(root, found) if "pictures" in found.files else _official(root, found, profile)
    return Task(
        name="gqa",
        version=1,
        description=f"short answers about things and their relations ({found.layout})",
        samples=in_order("gqa", samples),
        score=way.rule.score,
        aggregate=way.rule.aggregate,
        headline="exact_match",
        max_new_tokens=way.max_new_tokens,
        expected_n=12578,
    )


def _official(root: Path, found: Found, profile: str) -> Iterator[Sample]:
    asked = {label(at, row, "question_id"): row for at, row in read_jsonl(found.one("questions"))}
    answers = {name: (at, row) for at, name, row in read_values(found.one("answers"))}
    hold_same("gqa", {str(found.one("questions")): asked, str(found.one("answers")): answers})
    folder = root / "gqa/data/images"
    samples = []
    for name, (where, row) in answers.items():
        image = inside(where, folder, f"{label(where, row, 'imageId')}.jpg")
        prompt = short(text(where, row, "question"))
        if profile == "llava15":
            prompt = text(where, asked[name], "text")
        samples.append(_sample(where, name, row, prompt, image))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    pictures = {
        label(where, row, "id"): keep_picture(root, where, row["image"])
        for where, row in read_pictured(root, found.files["pictures"], ("id", "image"))
    }
    for where, row in read_table(found.files["questions"], COLUMNS):
        image = label(where, row, "imageId")
        if image not in pictures:
            raise ValueError(f"{where}: imageId={image!r} is not in {found.one('pictures').parent}")
        prompt = short(text(where, row, "question"))
        yield _sample(where, label(where, row, "id"), row, prompt, pictures[image])


def _sample(where: str, name: str, row: dict[str, object], prompt: str, image: Path) -> Sample:
    types = field(where, row, "types")
    if not isinstance(types, dict):
        raise ValueError(f"{where}: types={types!r} must be an object with the structural type")
    group = text(where, types, "structural")
    return Sample(name, prompt, (text(where, row, "answer"),), (image,), group=group)
