"""Yes or no, by POPE's official rule (arXiv:2305.10355, evaluate.py), quirks kept.

Only what stands before the first period counts, commas are dropped, and the words are what single
spaces separate. "No", "no" or "not" among them means no and everything else means yes: "NO",
"Nope", "No!" and an empty answer are all yes. The script divides by zero when nothing is predicted
positive; the value is 0 here, with a flag.
"""

from collections.abc import Sequence

from eval.metrics.statistics import majority_share, proportion_stderr
from eval.task import Metric, Sample, Score, Scored


def parse(text: str) -> str:
    """ "yes" or "no"; never undecided."""
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "no", "not") for word in words) else "yes"


def score(text: str, sample: Sample) -> Score:
    """Right or wrong; an answer that is yes only for want of a no is flagged ``yes_by_default``."""
    parsed = parse(text)
    assumed = parsed == "yes" and not text.strip().lower().startswith("yes")
    right = parsed == sample.references[0]
    return Score(parsed, {"accuracy": float(right)}, ("yes_by_default",) if assumed else ())


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy, precision, recall and F1 of "yes", and the share of predictions that are yes."""
    labels = [row.sample.references[0] for row in rows]
    guesses = [row.score.parsed for row in rows]
    n = len(rows)
    hits = sum(label == guess == "yes" for label, guess in zip(labels, guesses, strict=True))
    right = sum(label == guess for label, guess in zip(labels, guesses, strict=True))
    guessed, true = guesses.count("yes"), labels.count("yes")
    return {
        "accuracy": _share(right, n, chance=majority_share(labels)),
        "precision": _share(hits, guessed),
        "recall": _share(hits, true),
        "f1": _f1(hits, guessed, true, n),
        "yes_ratio": _share(guessed, n),
    }


def _share(part: int, whole: int, chance: float | None = None) -> Metric:
    if whole == 0:
        return Metric(0.0, 0, flags=("zero_division",))
    return Metric(part / whole, whole, proportion_stderr(part / whole, whole), chance)


def _f1(hits: int, guessed: int, true: int, n: int) -> Metric:
    # Precision or recall of 0/0 makes the official harmonic mean undefined as well.
    if hits == 0:
        return Metric(0.0, n, flags=("zero_division",))
    return Metric(2 * hits / (guessed + true), n)
