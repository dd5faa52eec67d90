"""MME: two yes-or-no questions about each picture, in 14 categories.

Prompt, all profiles: form S in place of the question's own "Please answer yes or no.", which lmms
and libmoe cut out with one space before it, llava15 with all. Rules: ``metrics/mme.py``. The files'
ids name the picture, so ours add the place of the question in alphabetical order; samples are in
the order of their ids. LLaVA's prompts are taken to be so built: their text has to fit a question
of MME's files, but for the instruction.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from eval.metrics import mme
from eval.metrics.rules import pick
from eval.readers import read_jsonl
from eval.readers.fields import inside, text, yes_or_no
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions, MME's labels": {
        "questions": ("MME/llava_mme.jsonl",),
        "labels": ("MME/MME_Benchmark_release_version/**/*.txt",),
    },
    "hub copy": {"tables": hub("mme", "test-*", "*")},
}
PICTURES = "  DATA_ROOT/MME/MME_Benchmark_release_version/CATEGORY/[images/]*"
COLUMNS = ("question_id", "question", "answer", "category", "image")
CATEGORIES = mme.PERCEPTION + mme.COGNITION
ASKED = "Please answer yes or no."
TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}
HEADLINES = {"llava15": "perception", "lmms": "perception", "libmoe": "libmoe_percentage"}


class Question(NamedTuple):
    """A question as MME writes it, with the place of its picture in MME's folders."""

    category: str
    picture: str
    wording: str
    answer: str
    image: Path


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/MME`` or ``root/hub/mme``; ``group`` is the category, ``meta`` has ``pair``."""
    tokens = of_profile("mme", profile, TOKENS)
    found = find_layout(root, "mme", LAYOUTS)
    questions = _hub(root, found) if "tables" in found.files else _llava(found)
    rule = pick(mme.RULES, profile)
    return Task(
        name="mme",
        version=1,
        description=f"two yes-or-no questions a picture, 2,374 recalled ({found.layout})",
        samples=_samples(questions, profile),
        score=rule.score,
        aggregate=rule.aggregate,
        headline=HEADLINES[profile],
        max_new_tokens=tokens,
    )


def bare(question: str) -> str:
    """A question without its instruction, of either kind."""
    return question.strip().removesuffix(SHORT).strip().removesuffix(ASKED).strip()


def _samples(questions: Iterable[Question], profile: str) -> tuple[Sample, ...]:
    pictures = defaultdict(list)
    for question in questions:
        pictures[question.category, question.picture].append(question)
    return tuple(
        Sample(
            id=f"{category}/{picture}/{number}",
            prompt=short(_asked(question.wording, profile)),
            references=(question.answer,),
            images=(question.image,),
            group=category,
            meta={"pair": picture},
        )
        for (category, picture), asked in sorted(pictures.items())
        for number, question in enumerate(sorted(asked, key=lambda q: bare(q.wording)), start=1)
    )


def _asked(wording: str, profile: str) -> str:
    return bare(wording) if profile == "llava15" else wording.strip().replace(f" {ASKED}", "")


def _llava(found: Found) -> list[Question]:
    labels = _labels(found.files["labels"])
    questions = []
    for where, row in read_jsonl(found.one("questions")):
        place = PurePosixPath(text(where, row, "question_id"))
        key = place.parts[0], place.stem, bare(text(where, row, "text"))
        if key not in labels:
            raise ValueError(
                f"{where}: no line of {place.stem}.txt in MME's folder {place.parts[0]} asks "
                f"{key[2]!r}"
            )
        wording, answer, base = labels[key]
        image = inside(where, base, text(where, row, "image"))
        questions.append(Question(key[0], key[1], wording, answer, image))
    all_there((question.image for question in questions), PICTURES)
    return questions


def _labels(files: Iterable[Path]) -> dict[tuple[str, str, str], tuple[str, str, Path]]:
    """Of each category, picture and bare question: its wording, answer and the folder of all."""
    labels = {}
    for path in files:
        folder = path.parent.parent if path.parent.name == "questions_answers_YN" else path.parent
        if folder.name not in CATEGORIES:  # results of the evaluation tool lie there as well
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            wording, _, answer = line.rpartition("\t")
            row = {"question": wording, "answer": answer}
            question = text(where, row, "question")
            said = yes_or_no(where, row, "answer")
            labels[folder.name, path.stem, bare(question)] = question, said, folder.parent
    return labels


def _hub(root: Path, found: Found) -> list[Question]:
    return [
        Question(
            category=text(where, row, "category"),
            picture=PurePosixPath(text(where, row, "question_id")).stem,
            wording=text(where, row, "question"),
            answer=yes_or_no(where, row, "answer"),
            image=keep_picture(root, where, row["image"]),
        )
        for where, row in read_pictured(root, found.files["tables"], COLUMNS)
    ]
