"""Multiple choice by letter, by LLaVA's ScienceQA rule (eval_science_qa.py), made deterministic.

An answer counts as a letter when it is the bare letter, when it starts with the letter and ". ", or
when "The answer is X" with one more character on its line stands in it exactly once. "A.", "a" and
"(A)" are no answers. Early versions of the script drew a random option then; here an unparsed
answer is wrong and counted.
"""

import re
from collections.abc import Sequence

from eval.metrics.statistics import majority_share, proportion_stderr, uniform_share
from eval.task import Metric, Sample, Score, Scored

LETTERS = "ABCDE"
STATED = re.compile(r"The answer is ([A-Z]).")  # the last dot is any character, as in the script


def parse(text: str) -> str | None:
    """The letter an answer gives, None where it gives none."""
    text = text.strip()
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated: list[str] = STATED.findall(text)
    return stated[0] if len(stated) == 1 else None


def score(text: str, sample: Sample) -> Score:
    """Right or wrong; a letter that the question does not offer is wrong and flagged."""
    parsed = parse(text)
    flags: tuple[str, ...] = ()
    if parsed is None:
        flags = ("unparsed",)
    elif parsed not in offered(sample):
        flags = ("not_offered",)
    return Score(parsed, {"accuracy": float(parsed == sample.references[0])}, flags)


def offered(sample: Sample) -> str:
    """The letters of a question's options."""
    return LETTERS[: len(sample.options)]


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy; chance is even guessing or the commonest letter, whichever is better."""
    share = sum(row.score.values["accuracy"] for row in rows) / len(rows)
    chance = max(
        uniform_share([len(row.sample.options) for row in rows]),
        majority_share([row.sample.references[0] for row in rows]),
    )
    return {"accuracy": Metric(share, len(rows), proportion_stderr(share, len(rows)), chance)}
