"""GQA (arXiv:1902.09506): exact match with one short answer.

``RULES``:

llava15  LLaVA's convert_gqa_for_eval.py deletes trailing periods and lower-cases, then GQA's
         eval.py compares; the reference is taken as it is
lmms     case and ASCII punctuation are ignored on both sides, as lmms-eval's ``exact_match`` does,
         so "red!" and "t-shirt" for "tshirt" count
libmoe   as lmms
"""

import string
from collections.abc import Sequence

from eval.metrics import exact_match
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(text: str, sample: Sample) -> Score:
    """Right when the answer, lower-cased and without trailing periods, is a reference."""
    parsed = text.strip().rstrip(".").lower()
    return Score(parsed, {"exact_match": float(parsed in sample.references)})


def score_lmms(text: str, sample: Sample) -> Score:
    """Right when the answer equals any reference but for case and punctuation."""
    parsed = unpunctuated(text.strip())
    right = parsed in {unpunctuated(reference) for reference in sample.references}
    return Score(parsed, {"exact_match": float(right)})


def unpunctuated(text: str) -> str:
    """Lower case, without ASCII punctuation."""
    return text.lower().translate(PUNCTUATION)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Share of right answers; chance is the commonest reference of each sample's own group."""
    return exact_match.aggregate(rows)


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}
