"""Answers that are kept for a judge or a server: a rule that gives no score, and no metric.

A task that uses it says in ``Task.unscored`` who scores; ``eval.submissions`` writes the files that
go there.
"""

from collections.abc import Sequence

from eval.task import Metric, Sample, Score, Scored


def score(text: str, sample: Sample) -> Score:
    """No answer parsed, no value."""
    return Score(None, {})


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """No metric."""
    return {}
