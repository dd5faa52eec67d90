"""What a benchmark is: samples, a rule that scores one answer, and one that sums the scores up.

A benchmark is a file in ``eval/tasks`` with ``load(root, profile) -> Task`` and a line in
``TASKS``. A profile names the prompts and rules of one tool, where tools differ.
"""

import difflib
import importlib
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

ANSWER_LOSS = "answer_loss"
DEFAULT_PROFILE = "llava15"
PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Sample:
    """One question; ``prompt`` is the whole text put to the model, without image placeholders.

    ``images`` are shown before it, in order. ``meta`` holds what a scoring rule needs beside the
    references, such as a category or a precision; the rule's docstring names its keys.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    images: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Score:
    """What a scoring rule made of one answer.

    ``parsed`` is None where the rule found no answer. ``values`` holds what this sample adds to
    each metric that is a mean over samples; ``flags`` names what a reader should know of.
    """

    parsed: str | None
    values: dict[str, float]
    flags: tuple[str, ...] = ()


class Scored(NamedTuple):
    """A sample and the score of the answer it was given."""

    sample: Sample
    score: Score


@dataclass(frozen=True)
class Metric:
    """One number over ``n`` samples; ``stderr`` is None where no simple formula gives it.

    ``chance`` is the best score of a model that never looks at the picture: the larger of guessing
    evenly and always giving the commonest answer. Points are what a benchmark itself counts in.
    """

    value: float
    n: int
    stderr: float | None = None
    chance: float | None = None
    unit: Literal["share", "nats", "points"] = "share"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark, ready to be asked.  Raise ``version`` whenever its numbers would change.

    ``expected_n`` is the published number of samples, None where there is none. ``headline`` is the
    metric to quote. In ``loss_groups`` the loss of the reference answer is measured as well.
    ``unscored`` says why answers are kept but no score is given here: a judge or a server gives it.
    ``ranked`` says of what of its options the model gives the loss, if it is to write no answer:
    ``eval.options``.
    """

    name: str
    version: int
    description: str
    samples: tuple[Sample, ...]
    score: Callable[[str, Sample], Score]
    aggregate: Callable[[Sequence[Scored]], dict[str, Metric]]
    headline: str
    max_new_tokens: int
    expected_n: int | None = None
    loss_groups: tuple[str, ...] = ()
    unscored: str = ""
    ranked: Literal["", "letters", "texts"] = ""

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"task {self.name} has no samples: is its question file empty?")
        if len({sample.id for sample in self.samples}) < len(self.samples):
            ids = Counter(sample.id for sample in self.samples)
            twice = [id for id, count in ids.items() if count > 1]
            raise ValueError(f"task {self.name} has ids that are used twice: {twice[:5]}")
        for sample in self.samples:
            if PLACEHOLDER in sample.prompt:
                raise ValueError(
                    f"the prompt of sample {sample.id} of {self.name} has {PLACEHOLDER}, which is "
                    f"the model's own mark of a picture: pictures are shown before the prompt"
                )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} of {self.name} must be above 0")
        if self.ranked:
            self._check_options()
        missing = set(self.loss_groups) - {sample.group for sample in self.samples}
        if missing:
            raise ValueError(
                f"task {self.name} measures the answer loss of {sorted(missing)}, "
                f"but no sample is in such a group: is the question file complete?"
            )

    def _check_options(self) -> None:
        numbers = {len(sample.options): sample.id for sample in self.samples}
        if max(numbers) == 0:
            raise ValueError(
                f"task {self.name} has no sample with options, so there is nothing to rank: leave "
                f"the task out, or --rank_options"
            )
        if max(numbers) > len(string.ascii_uppercase):
            raise ValueError(
                f"sample {numbers[max(numbers)]} of {self.name} has {max(numbers)} options; there "
                f"are {len(string.ascii_uppercase)} letters to rank"
            )
        if self.ranked == "texts" and 0 in numbers:
            raise ValueError(
                f"sample {numbers[0]} of {self.name} has no options; their texts are to be ranked"
            )


def load_task(name: str, root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """The benchmark called ``name``, asked and scored as in ``profile``, read from below ``root``.

    ValueError where there is no such task, or the task has no such profile.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.4) or sorted(TASKS)
        raise ValueError(f"no task is called {name!r}; did you mean {', '.join(near)}?")
    task: Task = importlib.import_module(TASKS[name]).load(root, profile)
    return task


def load_tasks(names: Sequence[str], root: Path, profile: str = DEFAULT_PROFILE) -> list[Task]:
    """Each of them; the ValueError of ``load_task`` has what is wrong with any, one below another.

    So what they lack can be fetched at once.
    """
    tasks, faults = [], []
    for name in names:
        try:
            tasks.append(load_task(name, root, profile))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return tasks


TASKS: dict[str, str] = {
    "stamps_yesno": "eval.tasks.stamps_yesno",
    "stamps_choice": "eval.tasks.stamps_choice",
    "stamps_short": "eval.tasks.stamps_short",
    "vqav2": "eval.tasks.vqav2",
    "vqav2_testdev": "eval.tasks.vqav2_testdev",
    "gqa": "eval.tasks.gqa",
    "vizwiz_vqa": "eval.tasks.vizwiz_vqa",
    "vizwiz_vqa_test": "eval.tasks.vizwiz_vqa_test",
    "textvqa": "eval.tasks.textvqa",
    "textvqa_no_ocr": "eval.tasks.textvqa_no_ocr",
    "chartqa": "eval.tasks.chartqa",
    "docvqa": "eval.tasks.docvqa",
    "docvqa_test": "eval.tasks.docvqa_test",
    "infovqa": "eval.tasks.infovqa",
    "ocrbench": "eval.tasks.ocrbench",
    "scienceqa_img": "eval.tasks.scienceqa_img",
    "mmbench_en": "eval.tasks.mmbench_en",
    "mmbench_cn": "eval.tasks.mmbench_cn",
    "seed_bench": "eval.tasks.seed_bench",
    "seed_bench_loss": "eval.tasks.seed_bench_loss",
    "seed_bench_2_plus": "eval.tasks.seed_bench_2_plus",
    "ai2d": "eval.tasks.ai2d",
    "mmstar": "eval.tasks.mmstar",
    "mmmu": "eval.tasks.mmmu",
    "mmmu_pro": "eval.tasks.mmmu_pro",
    "realworldqa": "eval.tasks.realworldqa",
    "mme_realworld_lite": "eval.tasks.mme_realworld_lite",
    "mme_realworld_cn": "eval.tasks.mme_realworld_cn",
    "pope": "eval.tasks.pope",
    "mme": "eval.tasks.mme",
    "hallusionbench": "eval.tasks.hallusionbench",
    "mathvista": "eval.tasks.mathvista",
    "mm_vet": "eval.tasks.mm_vet",
    "llava_w": "eval.tasks.llava_w",
    "own": "eval.tasks.own",
}
