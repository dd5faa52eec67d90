"""TextVQA (arXiv:1904.08920), val 0.5.1: questions about text in pictures, ten answers to each.

Prompt: ``llava15`` shows the OCR line "Reference OCR token: ..." between the question and the
instruction of form S, as LLaVA's question file has it; ``lmms`` and ``libmoe`` show none and
capitalise the question, which puts the rest of it in lower case. ``textvqa_no_ocr`` shows none in
any profile. The line alone moves a score by some ten points, so the two are never compared.

LLaVA's file has pictures for ids; it joins the annotations by picture and question in lower case,
as LLaVA's scorer does, and ``llava15`` takes question and OCR line from it. The hub copy has the
tokens; that LLaVA's file has the very same ones was not checked. Score: VQA accuracy in m4c's form.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eval.metrics import vqa_accuracy
from eval.readers import read_jsonl
from eval.readers.annotations import in_order, read_rows, texts
from eval.readers.fields import inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions, official answers": {
        "questions": ("textvqa/llava_textvqa_val_v051_ocr.jsonl",),
        "answers": ("textvqa/TextVQA_0.5.1_val.json",),
    },
    "hub copy": {"tables": hub("textvqa", "validation-*")},
}
PICTURES = "  DATA_ROOT/textvqa/train_images/*.jpg"
COLUMNS = ("question_id", "question", "answers", "ocr_tokens", "image")
OCR = "\nReference OCR token: "
SHOWS_OCR = {"llava15": True, "lmms": False, "libmoe": False}


class Asked(NamedTuple):
    """A question of LLaVA's file, and what stands between it and the instruction."""

    question: str
    ocr: str


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/textvqa`` or ``root/hub/textvqa``."""
    return task_of(root, profile, "textvqa", shows_ocr=of_profile("textvqa", profile, SHOWS_OCR))


def task_of(root: Path, profile: str, name: str, *, shows_ocr: bool) -> Task:
    """The task called ``name``, with or without the OCR line."""
    found = find_layout(root, name, LAYOUTS)
    read = _hub if "tables" in found.files else _official
    rule = vqa_accuracy.RULES["m4c"]
    line = "with" if shows_ocr else "without"
    return Task(
        name=name,
        version=1,
        description=f"text in pictures, {line} OCR tokens in the prompt ({found.layout})",
        samples=in_order(name, read(root, found, profile, shows_ocr)),
        score=rule.score,
        aggregate=rule.aggregate,
        headline="vqa_accuracy",
        max_new_tokens=128,
        expected_n=5000,
    )


def _official(root: Path, found: Found, profile: str, shows_ocr: bool) -> Iterator[Sample]:
    asked = _asked(found.one("questions"))
    folder, samples, used = root / "textvqa/train_images", [], set()
    for where, row in read_rows(found.one("answers"), "data"):
        question, picture = text(where, row, "question"), text(where, row, "image_id")
        key = picture, question.strip().lower()
        if key not in asked:
            raise ValueError(
                f"{where}: {found.one('questions')} does not ask {question!r} of {picture}"
            )
        used.add(key)
        image = inside(where, folder, f"{picture}.jpg")
        if profile == "llava15":
            question = asked[key].question
        prompt = _prompt(question, asked[key].ocr if shows_ocr else "", profile)
        answers = texts(where, row, "answers")
        samples.append(Sample(label(where, row, "question_id"), prompt, answers, (image,)))
    if alone := sorted(asked.keys() - used):
        raise ValueError(f"{found.one('questions')}: {len(alone)} unanswered, such as {alone[0]}")
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, profile: str, shows_ocr: bool) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        ocr = OCR + ", ".join(texts(where, row, "ocr_tokens")) if shows_ocr else ""
        prompt = _prompt(text(where, row, "question"), ocr, profile)
        image = keep_picture(root, where, row["image"])
        answers = texts(where, row, "answers")
        yield Sample(label(where, row, "question_id"), prompt, answers, (image,))


def _prompt(question: str, ocr: str, profile: str) -> str:
    return short((question if profile == "llava15" else question.capitalize()) + ocr)


def _asked(path: Path) -> dict[tuple[str, str], Asked]:
    # by the picture and the question in lower case
    asked = {}
    for where, row in read_jsonl(path):
        prompt = text(where, row, "text")
        question, _, rest = prompt.partition("\n")
        ocr, end = f"\n{rest}".removesuffix(f"\n{SHORT}"), prompt.endswith(f"\n{SHORT}")
        if not end or not (ocr == "" or ocr.startswith(OCR.rstrip(" "))):
            raise ValueError(f"{where}: {prompt!r} is not a question, an OCR line and {SHORT!r}")
        key = text(where, row, "question_id"), question.strip().lower()
        asked[key] = Asked(question, ocr)
    return asked
