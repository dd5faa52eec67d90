"""VQAv2 (arXiv:1612.00837), val: ten human answers to each question, scored here.

Prompt: form S in all profiles. Score: VQA accuracy, ``always_normalise`` in ``llava15``, vqaEval.py
to the letter in ``lmms`` and ``libmoe``. ``group`` is the answer's type. LLaVA reports test-dev,
which only its server can score: ``vqav2_testdev``.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.metrics import vqa_accuracy
from eval.readers.annotations import Way, hold_same, in_order, read_rows, texts
from eval.readers.fields import label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "official files": {
        "questions": ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json",),
        "answers": ("vqav2/v2_mscoco_val2014_annotations.json",),
    },
    "hub copy": {"tables": hub("vqav2", "validation-*")},
}
FOLDERS = ("vqav2/val2014", "pope/val2014")  # fetch puts COCO's pictures to POPE
PICTURES = "  DATA_ROOT/vqav2/val2014/COCO_val2014_*.jpg or DATA_ROOT/pope/val2014/..."
COLUMNS = ("question_id", "question", "answers", "answer_type", "image")
WAYS = {
    "llava15": Way(vqa_accuracy.RULES["always_normalise"], 128),
    "lmms": Way(vqa_accuracy.RULES["official_unanimous"], 16),
    "libmoe": Way(vqa_accuracy.RULES["official_unanimous"], 16),
}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/vqav2`` or ``root/hub/vqav2``."""
    way = of_profile("vqav2", profile, WAYS)
    found = find_layout(root, "vqav2", LAYOUTS)
    samples = _hub(root, found) if "tables" in found.files else _official(root, found)
    return Task(
        name="vqav2",
        version=1,
        description=f"open questions about COCO's pictures, val ({found.layout})",
        samples=in_order("vqav2", samples),
        score=way.rule.score,
        aggregate=way.rule.aggregate,
        headline="vqa_accuracy",
        max_new_tokens=way.max_new_tokens,
        expected_n=214354,
    )


def _official(root: Path, found: Found) -> Iterator[Sample]:
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), root / FOLDERS[0])
    asked = {
        label(where, row, "question_id"): (
            short(text(where, row, "question")),
            folder / f"COCO_val2014_{label(where, row, 'image_id'):0>12}.jpg",
        )
        for where, row in read_rows(found.one("questions"), "questions")
    }
    all_there((image for _, image in asked.values()), PICTURES)
    answered = set()
    for where, row in read_rows(found.one("answers"), "annotations"):
        name = label(where, row, "question_id")
        answered.add(name)
        if name in asked:
            prompt, image = asked[name]
            yield _sample(where, name, row, prompt, image)
    hold_same("vqav2", {str(found.one("questions")): asked, str(found.one("answers")): answered})


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        image = keep_picture(root, where, row["image"])
        prompt = short(text(where, row, "question"))
        yield _sample(where, label(where, row, "question_id"), row, prompt, image)


def _sample(where: str, name: str, row: dict[str, object], prompt: str, image: Path) -> Sample:
    answers = texts(where, row, "answers", "answer")
    return Sample(name, prompt, answers, (image,), group=text(where, row, "answer_type"))
