"""ScienceQA (arXiv:2209.09513), the test questions that have a picture, answered by letter.

Layouts, the first that is there:

LLaVA's files   ``scienceqa/llava_test_CQM-A.json`` with LLaVA's prompts beside the official files
official files  ``scienceqa/problems.json``, ``pid_splits.json``, ``images/test/PID/FILE``
hub copy        ``hub/scienceqa``, split test, config ScienceQA-IMG

The hub copy has no question ids, so an id is the number of the question among those with a picture
in the order of ``pid_splits.json``; that the hub's rows have this order is taken, not checked.

Prompt: form L, before it "Context:" and the hint where there is one, as in lmms-eval. LLaVA's file,
where it is there, has the last word on the prompt in ``llava15``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eval.metrics import choice
from eval.metrics.rules import pick
from eval.readers.choices import letter_of_index, texts
from eval.readers.fields import inside, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import LETTER, lettered, of_profile
from eval.readers.tables import Row
from eval.task import DEFAULT_PROFILE, Sample, Task

FOLDER = "scienceqa/images/test"
OFFICIAL = {
    "problems": ("scienceqa/problems.json",),
    "splits": ("scienceqa/pid_splits.json",),
}
LAYOUTS: dict[str, Layout] = {
    "LLaVA's files": {"questions": ("scienceqa/llava_test_CQM-A.json",), **OFFICIAL},
    "official files": OFFICIAL,
    "hub copy": {"test rows": hub("scienceqa", "ScienceQA-IMG/test-*", "test-*", "test/*")},
}
COLUMNS = ("question", "choices", "answer", "hint", "image", "subject")
MAX_NEW_TOKENS = {"llava15": 1024, "lmms": 16, "libmoe": 16}


class Problem(NamedTuple):
    """A row, where it stands, its picture and LLaVA's own prompt, if any."""

    where: str
    row: Row
    picture: Path
    prompt: str | None = None


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read the first of ``LAYOUTS`` that is there."""
    max_new_tokens = of_profile("scienceqa_img", profile, MAX_NEW_TOKENS)
    found = find_layout(root, "scienceqa_img", LAYOUTS)
    problems = _hub_rows(root, found) if found.layout == "hub copy" else _problems(root, found)
    rule = pick(choice.RULES, profile)
    samples = tuple(_sample(n, problem, profile) for n, problem in enumerate(problems))
    all_there((image for sample in samples for image in sample.images), f"  {root / FOLDER}/PID/")
    return Task(
        name="scienceqa_img",
        version=1,
        description=f"school science with pictures, by letter; {found.layout}",
        samples=samples,
        score=rule.score,
        aggregate=rule.aggregate,
        headline="accuracy",
        max_new_tokens=max_new_tokens,
        expected_n=2017,
    )


def _sample(number: int, problem: Problem, profile: str) -> Sample:
    where, row = problem.where, problem.row
    options = texts(where, row, "choices")
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    prompt = context + lettered(text(where, row, "question"), options)
    if profile == "llava15" and problem.prompt is not None:
        prompt = problem.prompt
    return Sample(
        id=str(number),
        prompt=prompt,
        references=(letter_of_index(where, row, "answer", options),),
        images=(problem.picture,),
        options=options,
        group=text(where, row, "subject"),
    )


def _hub_rows(root: Path, found: Found) -> Iterator[Problem]:
    for where, row in read_pictured(root, found.files["test rows"], COLUMNS):
        yield Problem(where, row, keep_picture(root, where, row["image"]))


def _problems(root: Path, found: Found) -> Iterator[Problem]:
    problems, path = read_json(found.one("problems")), found.one("problems")
    prompts = _prompts(found.one("questions")) if "questions" in found.files else None
    for pid in read_json(found.one("splits"))["test"]:
        where = f"{path}:{pid}"
        if pid not in problems:
            raise ValueError(f"{where}: {found.one('splits')} names it, but it is no problem there")
        if problems[pid]["image"] is None:
            continue
        if prompts is not None and pid not in prompts:
            raise ValueError(f"{where}: {found.one('questions')} has no question of this id")
        picture = inside(where, root / FOLDER, f"{pid}/{text(where, problems[pid], 'image')}")
        yield Problem(where, problems[pid], picture, prompts[pid] if prompts else None)


def _prompts(path: Path) -> dict[str, str]:
    # LLaVA's loader deletes the placeholder and, with --single-pred-prompt, adds the instruction.
    prompts = {}
    for row in read_json(path):
        question = row["conversations"][0]["value"].replace("<image>", "").strip()
        prompts[str(row["id"])] = f"{question}\n{LETTER}"
    return prompts
