"""HallusionBench (arXiv:2310.14566) by string rule, which is not the benchmark's own score.

The benchmark lets GPT decide whether an answer is right, wrong or unclear. The string rule, which
lmms-eval has beside it (evaluate_hb.py), takes an answer with "yes" anywhere in it, in any case, as
yes and any other as no; one with neither word is flagged ``no_by_default``. Its numbers are named
``..._string_rule``, and are never to be put beside judged ones.

References are yes or no. ``meta`` has ``category`` (VD or VS), ``subcategory``, ``set_id``,
``figure_id`` and ``question_id``. aAcc is per question, qAcc wants all figures of a question right,
fAcc all questions of a figure, where VS questions without a figure (``figure_id`` 0) have none.
"""

import re
from collections.abc import Iterable, Sequence

from eval.metrics.aggregates import all_right, parts, share
from eval.metrics.statistics import majority_share, proportion_stderr
from eval.task import Metric, Sample, Score, Scored

VALUE = "aAcc_string_rule"
DENIED = re.compile(r"\b(no|not)\b")


def score(text: str, sample: Sample) -> Score:
    """Right when "yes" stands in the answer just where yes is right."""
    text = text.lower()
    parsed = "yes" if "yes" in text else "no"
    flags = () if parsed == "yes" or DENIED.search(text) else ("no_by_default",)
    return Score(parsed, {VALUE: float(parsed == sample.references[0])}, flags)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """aAcc, and qAcc and fAcc as far as there are questions with figures."""
    chance = majority_share([row.sample.references[0] for row in rows])
    metrics = {VALUE: share(rows, VALUE, chance)}
    metrics["qAcc_string_rule"] = _all_right(parts(rows, _question).values())
    if shown := [row for row in rows if not _without_figure(row.sample)]:
        metrics["fAcc_string_rule"] = _all_right(parts(shown, _figure).values())
    return metrics


def _question(sample: Sample) -> tuple[str, ...]:
    return _key(sample, "set_id", "question_id")


def _figure(sample: Sample) -> tuple[str, ...]:
    return _key(sample, "set_id", "figure_id")


def _key(sample: Sample, *names: str) -> tuple[str, ...]:
    return tuple(str(sample.meta[name]) for name in ("category", "subcategory", *names))


def _without_figure(sample: Sample) -> bool:
    return sample.meta["category"] == "VS" and str(sample.meta["figure_id"]) == "0"


def _all_right(groups: Iterable[Sequence[Scored]]) -> Metric:
    right = [all_right(group, VALUE) for group in groups]
    value = sum(right) / len(right)
    return Metric(value, len(right), proportion_stderr(value, len(right)))
