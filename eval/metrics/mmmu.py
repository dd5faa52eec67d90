"""MMMU and MMMU-Pro: questions with options by letter, the others open.  Groups: subjects.

Micro accuracy over all questions. ``mmmu_choice`` and ``mmmu_open`` have the two rules. ``RULES``:

llava15  MMMU's own eval_utils.py; LLaVA-1.5 has no rule of its own
lmms     lmms-eval's letters, which take more forms; its open questions were broken up to 0.7.2
libmoe   as lmms
"""

from collections.abc import Callable, Sequence

from eval.metrics import mmmu_choice, mmmu_open
from eval.metrics.aggregates import choice_accuracy
from eval.metrics.letters import offered
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

Parser = Callable[[str, str, Sequence[str]], str | None]


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by MMMU's own script; its random branch is wrong and flagged."""
    return _score(mmmu_choice.parse, text, sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """The same with the letters of lmms-eval."""
    return _score(mmmu_choice.parse_lmms, text, sample)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy over all questions; chance only where all have options."""
    return choice_accuracy(rows)


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}


def _score(parser: Parser, text: str, sample: Sample) -> Score:
    text = text.strip()
    if not sample.options:
        candidates = mmmu_open.parse(text)
        right = mmmu_open.is_right(candidates, sample.references)
        return Score(" | ".join(map(str, candidates)), {"accuracy": float(right)})
    parsed = parser(text, offered(sample), sample.options)
    right = parsed in sample.references
    return Score(parsed, {"accuracy": float(right)}, () if parsed else ("random_branch",))
