"""MMStar (arXiv:2403.20330) by letter.  Groups: the six categories; ``meta["l2_category"]``.

By its own script (eval/vlmeval/evaluate/mmstar.py), which lmms-eval took over: in lower case, the
letter is the first character, or the one after an opening bracket, after "option " or after "the
answer is ". So "banana" is B. ``l2_mean`` is the mean over the groups of the mean accuracy of their
three l2 categories, which LibMoE reports; ``accuracy`` is over all rows, the script's final score.
"""

import math
from collections.abc import Sequence

from eval.metrics.aggregates import choice_chance, mean_of_parts, parts, share
from eval.metrics.letters import letter_score
from eval.task import Metric, Sample, Score, Scored

LETTERS = "abcd"
BEFORE = ("", "(", "option ", "the answer is ")


def parse(text: str) -> str | None:
    """The letter an answer gives, None where it gives none."""
    text = text.strip().lower().replace("\n", " ")
    for words in BEFORE:
        letter = text[len(words) : len(words) + 1]
        if text.startswith(words) and letter and letter in LETTERS:
            return letter.upper()
    return None


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by the letter."""
    return letter_score(parse(text), sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy over all rows, and the mean of the groups' l2 means."""
    groups = parts(rows, lambda sample: sample.group).values()
    return {
        "l2_mean": mean_of_parts([_l2_mean(group) for group in groups], len(rows)),
        "accuracy": share(rows, "accuracy", choice_chance(rows)),
    }


def _l2_mean(rows: Sequence[Scored]) -> float:
    categories = parts(rows, lambda sample: sample.meta["l2_category"]).values()
    return math.fsum(share(part, "accuracy").value for part in categories) / len(categories)
