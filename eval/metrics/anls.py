"""ANLS: average normalised Levenshtein similarity (arXiv:1905.13648), for DocVQA and InfoVQA.

By the script of the Robust Reading Competition, as far as its ports in lmms-eval and Qwen-VL show
it: both texts are lower-cased and their white space is collapsed for the edit distance, which is
divided by the length of the longer raw text, counted in upper case (where a German sharp s is two).
The best reference counts, and a similarity below 0.5 is 0; 0.5 itself is kept. The PyPI package
``anls`` zeroes 0.5 and divides by the collapsed length; inspect-evals zeroes 0.5 too.
"""

from collections.abc import Sequence

from eval.metrics.aggregates import average
from eval.metrics.edit_distance import edit_distance
from eval.task import Metric, Sample, Score, Scored

THRESHOLD = 0.5


def similarity(text: str, reference: str) -> float:
    """1 minus the normalised distance; 1 where both texts are empty."""
    length = max(len(text.upper()), len(reference.upper()))
    return 1 - edit_distance(_collapsed(text), _collapsed(reference)) / length if length else 1.0


def score(text: str, sample: Sample) -> Score:
    """The similarity to the nearest reference, 0 below the threshold."""
    text = text.strip()
    best = max(similarity(text, reference) for reference in sample.references)
    return Score(_collapsed(text), {"anls": best if best >= THRESHOLD else 0.0})


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """The mean over questions."""
    return {"anls": average(rows, "anls")}


def _collapsed(text: str) -> str:
    return " ".join(text.lower().split())
