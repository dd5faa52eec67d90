"""Exact match of short answers, as LLaVA scores GQA: lower-case, without trailing periods.

White space is stripped and collapsed on both sides; nothing else is forgiven, so "red!" is not
"red".
"""

from collections import defaultdict
from collections.abc import Sequence

from eval.metrics.statistics import majority_share, proportion_stderr
from eval.task import Metric, Sample, Score, Scored


def normalise(text: str) -> str:
    """The form in which two answers are compared."""
    return " ".join(text.lower().strip().rstrip(".").split())


def score(text: str, sample: Sample) -> Score:
    """Right when the answer equals any reference."""
    parsed = normalise(text)
    right = parsed in {normalise(reference) for reference in sample.references}
    return Score(parsed, {"exact_match": float(right)})


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Share of right answers; chance is the commonest reference of each sample's own group."""
    share = sum(row.score.values["exact_match"] for row in rows) / len(rows)
    error = proportion_stderr(share, len(rows))
    return {"exact_match": Metric(share, len(rows), error, _chance(rows))}


def _chance(rows: Sequence[Scored]) -> float:
    # The wording of a question gives its group away, so a blind model can know each group's habit.
    labels = defaultdict(list)
    for row in rows:
        labels[row.sample.group].append(normalise(row.sample.references[0]))
    return sum(majority_share(group) * len(group) for group in labels.values()) / len(rows)
