"""POPE (arXiv:2305.10355): is the thing in the image?  Samples are grouped by category.

The categories are random, popular and adversarial. LLaVA-1.5 quotes the mean F1 of the three
(``f1_mean``), TinyLLaVA the mean accuracy (``accuracy_mean``), LibMoE the accuracy over all 9000.

``RULES``:

llava15  POPE's evaluate.py and LLaVA's eval_pope.py: ``yes_no``, where all but a no is yes
lmms     lmms-eval's pope/utils.py: only the bare word counts, in any case, so "Yes." is wrong; an
         answer that is neither counts in accuracy alone. Its "yes ratio" is that of the labels and
         is called ``label_yes_ratio`` here
libmoe   as lmms
"""

from collections.abc import Sequence

from eval.metrics import yes_no
from eval.metrics.aggregates import mean_of_parts, parts, share
from eval.metrics.rules import Rule
from eval.metrics.statistics import majority_share, proportion_stderr
from eval.task import Metric, Sample, Score, Scored


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by the official rule; see ``yes_no``."""
    return yes_no.score(text, sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """Right when the answer is the bare word; one that is neither yes nor no is flagged."""
    word = text.strip().lower()
    parsed = word if word in ("yes", "no") else None
    right = parsed == sample.references[0]
    return Score(parsed, {"accuracy": float(right)}, () if parsed else ("unparsed",))


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """``yes_no`` over all rows, and the means of accuracy and F1 over the categories."""
    return yes_no.aggregate(rows) | _means([yes_no.aggregate(part) for part in _categories(rows)])


def aggregate_lmms(rows: Sequence[Scored]) -> dict[str, Metric]:
    """lmms-eval's counts over all rows, and the means over the categories."""
    return _counts_lmms(rows) | _means([_counts_lmms(part) for part in _categories(rows)])


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate_lmms),
    "libmoe": Rule(score_lmms, aggregate_lmms),
}


def _categories(rows: Sequence[Scored]) -> list[list[Scored]]:
    return list(parts(rows, lambda sample: sample.group).values())


def _means(categories: Sequence[dict[str, Metric]]) -> dict[str, Metric]:
    n = sum(metrics["accuracy"].n for metrics in categories)
    f1 = mean_of_parts([metrics["f1"].value for metrics in categories], n)
    flags = {flag for metrics in categories for flag in metrics["f1"].flags}
    return {
        "accuracy_mean": mean_of_parts([metrics["accuracy"].value for metrics in categories], n),
        "f1_mean": Metric(f1.value, n, flags=tuple(sorted(flags))),
    }


def _counts_lmms(rows: Sequence[Scored]) -> dict[str, Metric]:
    labels = [row.sample.references[0] for row in rows]
    pairs = [(label, row.score.parsed) for label, row in zip(labels, rows, strict=True)]
    hits = pairs.count(("yes", "yes"))
    precision = _ratio(hits, hits + pairs.count(("no", "yes")))
    recall = _ratio(hits, hits + pairs.count(("yes", "no")))
    total = precision.value + recall.value
    f1 = 2 * precision.value * recall.value / total if total else 0.0
    return {
        "accuracy": share(rows, "accuracy", majority_share(labels)),
        "precision": precision,
        "recall": recall,
        "f1": Metric(f1, len(rows), flags=() if total else ("zero_division",)),
        "label_yes_ratio": _ratio(labels.count("yes"), len(labels)),
    }


def _ratio(part: int, whole: int) -> Metric:
    if whole == 0:
        return Metric(0.0, 0, flags=("zero_division",))
    return Metric(part / whole, whole, proportion_stderr(part / whole, whole))
