"""MMBench EN and CN (arXiv:2307.06281): a question with its options rotated, right in every row.

Rows whose ``meta["index"]`` is the same modulo a million are one group, and every row of it must be
right (``circular_accuracy``); ``row_accuracy`` counts rows alone.

The letter is read by the rule that MMBench's tools apply before they ask a GPT matcher (lmms-eval's
mmbench_evals.py, VLMEvalKit of 2023):

- Among the words that white space separates, exactly one of A to E stands bare. Where "A" is among
  more than three words it may be the article, and this step is left out.
- Else, for each of twelve dresses in turn, "A." "A," "A:" "A)" "A)." "(A)" "(A)." ":A" ":A," ":A."
  ":A)" ":A).", exactly one letter wears it.
- Else, in lower case, the text of exactly one option stands anywhere in the answer.

What this leaves open goes to the matcher there, and then to a random letter; here it is wrong and
flagged ``unparsed``.
"""

import math
from collections.abc import Iterable, Sequence

from eval.metrics.aggregates import all_right, choice_chance, parts, share
from eval.metrics.letters import letter_score
from eval.metrics.statistics import proportion_stderr
from eval.task import Metric, Sample, Score, Scored

LETTERS = "ABCDE"
DRESSES = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)
MOST_WORDS_WITH_A = 3
ROTATION = 1_000_000


def parse(text: str, options: Sequence[str]) -> str | None:
    """The letter an answer gives, None where the rule leaves it open."""
    words = text.split()
    letter = _only(words, "", "")
    if letter and not ("A" in words and len(words) > MOST_WORDS_WITH_A):
        return letter
    for before, after in DRESSES:
        if letter := _only(words, before, after):
            return letter
    named = [
        letter
        for letter, option in zip(LETTERS, options, strict=False)
        if option.lower() in text.lower()
    ]
    return named[0] if len(named) == 1 else None


def score(text: str, sample: Sample) -> Score:
    """Whether one row is right; ``options`` are those the row shows."""
    scored = letter_score(parse(text.strip(), sample.options), sample)
    return Score(scored.parsed, {"row_accuracy": scored.values["accuracy"]}, scored.flags)


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Circular accuracy over groups, and the accuracy of rows.

    A group with fewer rows than options, as in a limited run, is counted and flagged.
    """
    groups = parts(rows, lambda sample: sample.meta["index"] % ROTATION).values()
    right = sum(all_right(group, "row_accuracy") for group in groups) / len(groups)
    whole = all(len(group) >= len(group[0].sample.options) for group in groups)
    return {
        "circular_accuracy": Metric(
            right,
            len(groups),
            proportion_stderr(right, len(groups)),
            _chance(groups),
            flags=() if whole else ("incomplete_groups",),
        ),
        "row_accuracy": share(rows, "row_accuracy", choice_chance(rows)),
    }


def _only(words: Sequence[str], before: str, after: str) -> str | None:
    found = [letter for letter in LETTERS if f"{before}{letter}{after}" in words]
    return found[0] if len(found) == 1 else None


def _chance(groups: Iterable[Sequence[Scored]]) -> float | None:
    # A model that always gives one letter fails every whole group: even guessing is the best.
    options = [[len(row.sample.options) for row in group] for group in groups]
    if not all(map(all, options)):
        return None
    return math.fsum(1 / math.prod(group) for group in options) / len(options)
