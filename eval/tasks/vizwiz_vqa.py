"""VizWiz-VQA (arXiv:1802.08218), val: questions of blind people, ten human answers to each.

Prompt: the question, the line that asks for "Unanswerable", the instruction of form S; ``lmms`` and
``libmoe`` capitalise the question, which puts the rest of it in lower case. Score: VQA accuracy in
m4c's form. Ids are the picture's name without its suffix. LLaVA reports test, which only the
challenge's server can score: ``vizwiz_vqa_test``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from eval.metrics import vqa_accuracy
from eval.readers.annotations import in_order, read_rows, texts
from eval.readers.fields import inside, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "official files": {"rows": ("vizwiz/val.json", "vizwiz/Annotations/val.json")},
    "hub copy": {"tables": hub("vizwiz", "val-*")},
}
PICTURES = "  DATA_ROOT/vizwiz/val/*.jpg"
COLUMNS = ("question_id", "question", "answers", "image")
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
INSTRUCTION = f"{UNANSWERABLE}\n{SHORT}"


def as_asked(question: str) -> str:
    """LLaVA's prompt."""
    return short(question, INSTRUCTION)


def capitalised(question: str) -> str:
    """The prompt of lmms-eval."""
    return short(question.capitalize(), INSTRUCTION)


PROMPTS = {"llava15": as_asked, "lmms": capitalised, "libmoe": capitalised}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/vizwiz`` or ``root/hub/vizwiz``."""
    prompt = of_profile("vizwiz_vqa", profile, PROMPTS)
    found = find_layout(root, "vizwiz_vqa", LAYOUTS)
    read = _hub if "tables" in found.files else _official
    rule = vqa_accuracy.RULES["m4c"]
    return Task(
        name="vizwiz_vqa",
        version=1,
        description=f"questions of blind people about their photographs, val ({found.layout})",
        samples=in_order("vizwiz_vqa", read(root, found, prompt)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="vqa_accuracy",
        max_new_tokens=128,
        expected_n=4319,
    )


def _official(root: Path, found: Found, prompt: Callable[[str], str]) -> Iterator[Sample]:
    folder, samples = root / "vizwiz/val", []
    for where, row in read_rows(found.one("rows")):
        name = text(where, row, "image")
        answers = texts(where, row, "answers", "answer")
        question = prompt(text(where, row, "question"))
        image = inside(where, folder, name)
        samples.append(Sample(PurePosixPath(name).stem, question, answers, (image,)))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, prompt: Callable[[str], str]) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        name = PurePosixPath(text(where, row, "question_id")).name.removesuffix(".jpg")
        question = prompt(text(where, row, "question"))
        answers = texts(where, row, "answers")
        yield Sample(name, question, answers, (keep_picture(root, where, row["image"]),))
