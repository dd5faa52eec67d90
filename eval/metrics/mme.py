"""MME (arXiv:2306.13394): two yes-or-no questions about each picture, in 14 categories.

``Sample.group`` is the category, ``Sample.meta["pair"]`` names the picture within it. A category
scores 100 x accuracy + 100 x the share of pictures with both questions right (accuracy+). The sum
over ten categories is perception (at most 2000), over four cognition (at most 800). LibMoE's README
publishes (perception + cognition) / 2800 in percent; its code takes the mean percentage of the
categories, which is the same number where all 14 are there.

Of an answer in lower case, "yes" or "no" alone counts, else yes and then no is looked for inside
the first four characters, so that "not", "now" and "snow" are no. Anything else is "other", which
is wrong and flagged ``unparsed``. ``RULES``:

llava15  eval_tool/calculation.py (recalled through its port in lmms-eval, not checked itself)
lmms     lmms-eval's mme/utils.py: periods are deleted first, and a lone y or n counts
libmoe   as lmms
"""

import math
from collections.abc import Sequence

from eval.metrics.aggregates import all_right, parts, share
from eval.metrics.rules import Rule
from eval.metrics.statistics import majority_share, proportion_stderr
from eval.task import Metric, Sample, Score, Scored

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MOST_POINTS = 2800
PREFIX = 4


def parse(text: str) -> str | None:
    """ "yes", "no", or None for other."""
    return _yes_or_no(text.strip().lower()[:PREFIX])


def parse_lmms(text: str) -> str | None:
    """The same after periods are deleted; a lone y or n counts."""
    text = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _yes_or_no(text[:PREFIX])


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by the official rule."""
    return _score(parse(text), sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """Right or wrong by lmms-eval's rule."""
    return _score(parse_lmms(text), sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy, accuracy+, and the points of perception and cognition as far as there are any.

    A picture with other than two questions, as in a limited run, counts in no accuracy+, and sums
    that lack a category are flagged.
    """
    categories = parts(rows, lambda sample: sample.group)
    unknown = set(categories) - {*PERCEPTION, *COGNITION}
    if unknown:
        raise ValueError(
            f"MME has no category {sorted(unknown)}; its 14 are {', '.join(PERCEPTION + COGNITION)}"
        )
    labels = [row.sample.references[0] for row in rows]
    metrics = {
        "accuracy": share(rows, "accuracy", majority_share(labels)),
        "accuracy_plus": accuracy_plus(rows),
    }
    sums = {"perception": PERCEPTION, "cognition": COGNITION}
    for name, wanted in sums.items():
        found = [categories[category] for category in wanted if category in categories]
        if found:
            metrics[name] = _points(found, complete=len(found) == len(wanted))
    if metrics.keys() >= sums.keys():
        metrics["libmoe_percentage"] = _libmoe(metrics["perception"], metrics["cognition"])
    return metrics


def accuracy_plus(rows: Sequence[Scored]) -> Metric:
    """The share of pictures with both questions right."""
    pictures = parts(rows, lambda sample: (sample.group, sample.meta["pair"])).values()
    pairs = [pair for pair in pictures if len(pair) == 2]
    flags = () if len(pairs) == len(pictures) else ("incomplete_pairs",)
    if not pairs:
        return Metric(0.0, 0, flags=flags)
    value = sum(all_right(pair, "accuracy") for pair in pairs) / len(pairs)
    return Metric(value, len(pairs), proportion_stderr(value, len(pairs)), flags=flags)


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}


def _yes_or_no(start: str) -> str | None:
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


def _score(parsed: str | None, sample: Sample) -> Score:
    right = parsed == sample.references[0]
    return Score(parsed, {"accuracy": float(right)}, () if parsed else ("unparsed",))


def _points(categories: Sequence[Sequence[Scored]], *, complete: bool) -> Metric:
    pluses = [accuracy_plus(rows) for rows in categories]
    shares = [share(rows, "accuracy").value for rows in categories]
    flags = {flag for plus in pluses for flag in plus.flags}
    if not complete:
        flags.add("categories_missing")
    return Metric(
        100 * math.fsum([*shares, *(plus.value for plus in pluses)]),
        sum(len(rows) for rows in categories),
        unit="points",
        flags=tuple(sorted(flags)),
    )


def _libmoe(perception: Metric, cognition: Metric) -> Metric:
    return Metric(
        (perception.value + cognition.value) / MOST_POINTS,
        perception.n + cognition.n,
        flags=tuple(sorted({*perception.flags, *cognition.flags})),
    )
