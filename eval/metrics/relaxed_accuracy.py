"""Relaxed accuracy of ChartQA (arXiv:2203.10244, section 5.1): numbers may be off by 5 percent.

A text is a number when Python's ``float`` reads it, after a trailing percent sign, which divides it
by 100; thousands commas are no numbers. Where the prediction is a number and the reference one that
is not zero, the prediction must be within 5 percent of the reference. Anything else, a zero
reference too, is compared as text in any case. Qwen-VL's own evaluation swaps the two and divides
by the prediction, which this does not follow. Group samples by ``human`` and ``augmented``.
"""

from collections.abc import Sequence

from eval.metrics.aggregates import share
from eval.task import Metric, Sample, Score, Scored

TOLERANCE = 0.05


def is_right(text: str, reference: str) -> bool:
    """Whether a prediction is near enough to one reference."""
    predicted, wanted = number(text), number(reference)
    if predicted is not None and wanted:
        return abs(predicted - wanted) / abs(wanted) <= TOLERANCE
    return text.lower() == reference.lower()


def number(text: str) -> float | None:
    """The number a text stands for, None where it is none."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def score(text: str, sample: Sample) -> Score:
    """Right when any reference is met."""
    text = text.strip()
    right = any(is_right(text, reference) for reference in sample.references)
    return Score(text, {"relaxed_accuracy": float(right)})


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Share of right answers."""
    return {"relaxed_accuracy": share(rows, "relaxed_accuracy")}
