"""SEED-Bench (arXiv:2307.16125) and SEED-Bench-2-Plus, by letter.  Groups: image and video.

``RULES``:

llava15  LLaVA's convert_seed_for_submission.py: the answer is the letter and nothing else
lmms     lmms-eval's seedbench/utils.py: the first character in any case, so "banana" is B
libmoe   as lmms

The benchmark's own protocol takes the option of the lowest loss: ``eval.tasks.seed_bench_loss``.
"""

from collections.abc import Sequence

from eval.metrics.aggregates import choice_accuracy
from eval.metrics.letters import letter_score
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

LETTERS = "ABCD"


def score(text: str, sample: Sample) -> Score:
    """Right when the answer is the bare capital letter."""
    text = text.strip()
    return letter_score(text if len(text) == 1 and text in LETTERS else None, sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """Right when the first character is the letter."""
    first = text.strip()[:1].upper()
    return letter_score(first if first and first in LETTERS else None, sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy over all rows."""
    return choice_accuracy(rows)


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}
