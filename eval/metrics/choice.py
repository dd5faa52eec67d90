"""Multiple choice by letter, by LLaVA's ScienceQA rule (eval_science_qa.py), made deterministic.

An answer counts as a letter when it is the bare letter, when it starts with the letter and ". ", or
when "The answer is X" with one more character on its line stands in it exactly once. "A.", "a" and
"(A)" are no answers. Early versions of the script drew a random option then; here an unparsed
answer is wrong and counted.

``RULES``:

llava15  the above
lmms     lmms-eval's scienceqa/utils.py: a bare letter in any case, or a capital and a period at the
         start, whatever follows; "The answer is A." is none. Some of its versions lower-case the
         answer first, so that a capital and a period never fits; which of them 0.7.3 is was not
         checked
libmoe   as lmms
"""

import re
from collections.abc import Sequence

from eval.metrics.aggregates import choice_accuracy
from eval.metrics.letters import letter_score
from eval.metrics.rules import Rule
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


def parse_lmms(text: str) -> str | None:
    """The letter an answer gives by lmms-eval's rule, None where it gives none."""
    text = text.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    return text[0] if len(text) >= 2 and text[0] in LETTERS and text[1] == "." else None


def score(text: str, sample: Sample) -> Score:
    """Right or wrong; a letter that the question does not offer is wrong and flagged."""
    return letter_score(parse(text), sample)


def score_lmms(text: str, sample: Sample) -> Score:
    """The same by lmms-eval's rule."""
    return letter_score(parse_lmms(text), sample)


def offered(sample: Sample) -> str:
    """The letters of a question's options."""
    return LETTERS[: len(sample.options)]


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy; chance is even guessing or the commonest letter, whichever is better."""
    return choice_accuracy(rows)


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}
