"""LLaVA-Bench in the Wild: open questions whose answers GPT-4 rates; no score is given here.

Prompt, all profiles: form N. ``eval.submissions`` writes the answers in the form that LLaVA's
``eval_gpt_review_bench.py`` takes. ``references`` hold GPT-4's own answer, which the model's is
compared with, and ``meta`` the picture's description that the judge reads, as ``context``.
"""

from collections.abc import Iterator
from pathlib import Path

from eval import unscored
from eval.readers import read_jsonl
from eval.readers.fields import field, inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

FOLDER = "llava-bench-in-the-wild"
LAYOUTS: dict[str, Layout] = {
    "the authors' files": {
        "questions": (f"{FOLDER}/questions.jsonl",),
        "context": (f"{FOLDER}/context.jsonl",),
        "answers": (f"{FOLDER}/answers_gpt4.jsonl",),
    },
    "hub copy": {"tables": hub("llava_w", "train-*", "*")},
}
PICTURES = f"  DATA_ROOT/{FOLDER}/images/*.jpg"
COLUMNS = ("question_id", "question", "gpt_answer", "category", "caption", "image")
JUDGE = "GPT-4 rates the answers: submissions/llava_w.jsonl is for eval_gpt_review_bench.py"
TOKENS = {"llava15": 1024, "lmms": 1024, "libmoe": 1024}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/llava-bench-in-the-wild`` or ``root/hub/llava_w``; ``group`` is the category."""
    tokens = of_profile("llava_w", profile, TOKENS)
    found = find_layout(root, "llava_w", LAYOUTS)
    read = _hub if "tables" in found.files else _authors
    return Task(
        name="llava_w",
        version=1,
        description=f"open questions in the wild, for a judge ({found.layout})",
        samples=tuple(read(root, found)),
        score=unscored.score,
        aggregate=unscored.aggregate,
        headline="gpt_score",
        max_new_tokens=tokens,
        expected_n=60,
        unscored=JUDGE,
    )


def _authors(root: Path, found: Found) -> Iterator[Sample]:
    contexts = {
        text(where, row, "image"): text(where, row, "caption")
        for where, row in read_jsonl(found.one("context"))
    }
    answers = {
        label(where, row, "question_id"): text(where, row, "text")
        for where, row in read_jsonl(found.one("answers"))
    }
    samples = []
    for where, row in read_jsonl(found.one("questions")):
        number, image = label(where, row, "question_id"), text(where, row, "image")
        if number not in answers or image not in contexts:
            raise ValueError(
                f"{where}: question {number} about {image} has no answer in answers_gpt4.jsonl or "
                f"no description in context.jsonl"
            )
        path = inside(where, root / FOLDER / "images", image)
        question, group = text(where, row, "text"), text(where, row, "category")
        samples.append(_sample(number, question, answers[number], path, group, contexts[image]))
    all_there((image for sample in samples for image in sample.images), PICTURES)
    yield from samples


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        caption = field(where, row, "caption")
        yield _sample(
            label(where, row, "question_id"),
            text(where, row, "question"),
            text(where, row, "gpt_answer"),
            keep_picture(root, where, row["image"]),
            text(where, row, "category"),
            "\n".join(caption) if isinstance(caption, list) else text(where, row, "caption"),
        )


def _sample(number: str, prompt: str, answer: str, image: Path, group: str, context: str) -> Sample:
    return Sample(number, prompt, (answer,), (image,), group=group, meta={"context": context})
