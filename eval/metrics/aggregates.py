"""Shares and means over scored rows, which most rules sum up by."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from eval.metrics.statistics import majority_share, mean, proportion_stderr, uniform_share
from eval.task import Metric, Sample, Scored

Key = TypeVar("Key")


def share(rows: Sequence[Scored], name: str, chance: float | None = None) -> Metric:
    """Share of rows whose value ``name``, 0 or 1, is 1."""
    value = sum(row.score.values[name] for row in rows) / len(rows)
    return Metric(value, len(rows), proportion_stderr(value, len(rows)), chance)


def average(rows: Sequence[Scored], name: str, chance: float | None = None) -> Metric:
    """Mean of the value ``name``, which gives parts of a point."""
    estimate = mean([row.score.values[name] for row in rows])
    return Metric(estimate.value, estimate.n, estimate.stderr, chance)


def choice_accuracy(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy of questions with options; chance as far as every question has them."""
    return {"accuracy": share(rows, "accuracy", choice_chance(rows))}


def choice_chance(rows: Sequence[Scored]) -> float | None:
    """Even guessing or the commonest letter, whichever is better; None where options are absent."""
    if not all(row.sample.options for row in rows):
        return None
    return max(
        uniform_share([len(row.sample.options) for row in rows]),
        majority_share([row.sample.references[0] for row in rows]),
    )


def parts(rows: Sequence[Scored], key: Callable[[Sample], Key]) -> dict[Key, list[Scored]]:
    """The rows by a key of their samples, keys in the order of their first row."""
    found: dict[Key, list[Scored]] = defaultdict(list)
    for row in rows:
        found[key(row.sample)].append(row)
    return dict(found)


def all_right(rows: Sequence[Scored], name: str) -> bool:
    """Whether the value ``name`` is 1 in every row."""
    return all(row.score.values[name] == 1.0 for row in rows)


def mean_of_parts(values: Sequence[float], n: int) -> Metric:
    """Mean of the scores of parts that hold ``n`` rows together; no simple standard error."""
    return Metric(math.fsum(values) / len(values), n)
