"""OCRBench (arXiv:2305.07895): an answer is right when it contains any reference.

By OCRBench's example.py: both sides lower-cased and stripped, newlines to spaces. For the formulas
of HME100k (``meta["dataset"]``) case is kept and all spaces are dropped instead. The score is the
number of right answers, of 1000. ``RULES``:

llava15  the above
lmms     lmms-eval's ocrbench/utils.py, which also reads full-width ASCII as ASCII, taken here for
         both sides (not checked); its early versions lower-cased HME100k answers as well
libmoe   as lmms
"""

from collections.abc import Callable, Sequence

from eval.metrics.aggregates import share
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

FORMULAS = "HME100k"
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def score(text: str, sample: Sample) -> Score:
    """Right when any reference stands in the answer."""
    return _score(_formula if sample.meta["dataset"] == FORMULAS else _plain, text, sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """The same once full-width ASCII became ASCII."""
    form = _formula if sample.meta["dataset"] == FORMULAS else _plain
    return _score(lambda text: form(text.translate(HALF_WIDTH)), text, sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """The number of right answers, and their share."""
    accuracy = share(rows, "accuracy")
    points = sum(row.score.values["accuracy"] for row in rows)
    return {"score": Metric(points, len(rows), unit="points"), "accuracy": accuracy}


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}


def _score(form: Callable[[str], str], text: str, sample: Sample) -> Score:
    parsed = form(text)
    right = any(form(reference) in parsed for reference in sample.references)
    return Score(parsed, {"accuracy": float(right)})


def _plain(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
