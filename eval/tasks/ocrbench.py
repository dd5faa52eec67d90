"""OCRBench (arXiv:2305.07895): 1,000 questions about text in pictures, of ten kinds.

Prompt: the question alone; ``lmms`` and ``libmoe`` strip it. Score: ``metrics/ocrbench.py``, whose
``meta["dataset"]`` is the set that a question was taken from. ``group`` is its kind. The files have
no ids: an id is the row's place.
"""

from collections.abc import Iterator
from pathlib import Path

from eval.metrics import ocrbench
from eval.readers.annotations import in_order, read_rows, texts
from eval.readers.fields import inside, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "official files": {
        "rows": ("ocrbench/OCRBench.json", "ocrbench/OCRBench/OCRBench.json"),
    },
    "hub copy": {"tables": hub("ocrbench", "test-*")},
}
FOLDER = "ocrbench/OCRBench_Images"
PICTURES = f"  DATA_ROOT/{FOLDER}/*"
COLUMNS = ("dataset", "question", "question_type", "answer", "image")


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/ocrbench`` or ``root/hub/ocrbench``."""
    rule = of_profile("ocrbench", profile, ocrbench.RULES)
    found = find_layout(root, "ocrbench", LAYOUTS)
    read = _hub if "tables" in found.files else _official
    return Task(
        name="ocrbench",
        version=1,
        description=f"text in pictures, of ten kinds ({found.layout})",
        samples=in_order("ocrbench", read(root, found, profile)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="score",
        max_new_tokens=128,
        expected_n=1000,
    )


def _official(root: Path, found: Found, profile: str) -> Iterator[Sample]:
    samples = []
    for number, (where, row) in enumerate(read_rows(found.one("rows"))):
        image = inside(where, root / FOLDER, text(where, row, "image_path"))
        if isinstance(row.get("answers"), str):
            row["answers"] = [row["answers"]]
        answers = texts(where, row, "answers")
        dataset, kind = text(where, row, "dataset_name"), text(where, row, "type")
        question = text(where, row, "question")
        samples.append(_sample(number, question, answers, image, kind, dataset, profile))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, profile: str) -> Iterator[Sample]:
    for number, (where, row) in enumerate(read_pictured(root, found.files["tables"], COLUMNS)):
        question, answers = text(where, row, "question"), texts(where, row, "answer")
        image = keep_picture(root, where, row["image"])
        dataset, kind = text(where, row, "dataset"), text(where, row, "question_type")
        yield _sample(number, question, answers, image, kind, dataset, profile)


def _sample(
    number: int,
    question: str,
    answers: tuple[str, ...],
    image: Path,
    kind: str,
    dataset: str,
    profile: str,
) -> Sample:
    prompt = question if profile == "llava15" else question.strip()
    meta = {"dataset": dataset}
    return Sample(str(number), prompt, answers, (image,), group=kind, meta=meta)
