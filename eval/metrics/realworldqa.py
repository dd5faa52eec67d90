"""RealWorldQA (xAI, 2024): a letter, a word or a number, matched exactly in any case.

``RULES``:

llava15  a capital letter and a period at the start, or the text of an option, stand for the letter;
         else the whole answer counts
lmms     lmms-eval's realworldqa/utils.py, in the form without an option's text: number words
         zero..ten become digits when they are the whole answer, a capital and a period at the start
         stand for the letter. Other versions of it look for option texts inside the answer; which
         one 0.7.3 has was not checked
libmoe   as lmms

Trailing periods are deleted. The data set has no official script.
"""

import re
from collections.abc import Sequence

from eval.metrics.aggregates import share
from eval.metrics.letters import offered
from eval.metrics.rules import Rule
from eval.metrics.vqa_accuracy import NUMBERS
from eval.task import Metric, Sample, Score, Scored

LEADING = re.compile(r"([A-Z])\.")


def score(text: str, sample: Sample) -> Score:
    """Right when the letter, the option's text or the whole answer is the reference."""
    answer = _plain(_leading_letter(text.strip()))
    letters = {
        _plain(option): letter
        for letter, option in zip(offered(sample), sample.options, strict=True)
    }
    return _score(_plain(letters.get(answer, answer)), sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """Right when the letter or the whole answer is the reference."""
    text = text.strip()
    number = text.lower() if text.lower() != "none" else ""
    return _score(_plain(_leading_letter(NUMBERS.get(number, text))), sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Share of right answers."""
    return {"exact_match": share(rows, "exact_match")}


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}


def _leading_letter(text: str) -> str:
    leading = LEADING.match(text)
    return leading[1] if leading else text


def _plain(text: str) -> str:
    return text.lower().strip().rstrip(".")


def _score(parsed: str, sample: Sample) -> Score:
    right = parsed in {reference.lower().strip() for reference in sample.references}
    return Score(parsed, {"exact_match": float(right)})
