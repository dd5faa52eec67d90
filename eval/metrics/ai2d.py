"""AI2D (arXiv:1603.07396) by letter, as lmms-eval scores it (ai2d.yaml, ai2d/utils.py).

A capital letter and a period at the start count whatever follows; any other answer must be the
letter once case and ASCII punctuation are ignored: "a", "(A)" and "A!" are A, "A cat" is none.
Early versions of lmms-eval lack the first half, so "A. cat" was wrong there; which of them LibMoE's
fork has was not checked. LLaVA-1.5 has no rule for this benchmark.
"""

import re
from collections.abc import Sequence

from eval.metrics.aggregates import choice_accuracy
from eval.metrics.gqa import unpunctuated
from eval.metrics.letters import letter_score, offered
from eval.task import Metric, Sample, Score, Scored

LEADING = re.compile(r"([A-Z])\.")


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by the letter; an answer that is no offered letter is unparsed."""
    text = text.strip()
    if leading := LEADING.match(text):
        return letter_score(leading[1], sample)
    letter = unpunctuated(text).upper()
    return letter_score(letter if len(letter) == 1 and letter in offered(sample) else None, sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy over all rows."""
    return choice_accuracy(rows)
