"""MME-RealWorld (arXiv:2408.13257), -lite and -CN: five options A to E, by letter.

By its own script (evaluation/eval_your_results.py): stock phrases are deleted, then the first
capital A to E anywhere counts. The script joins "The best option is" with "The correct option is",
and "Best answer:" with "Best option:", by a lost comma, so none of the four is deleted and "Best
answer: C" is B. Without a capital, an answer of at most ten words that stands inside an option
written as "(A) text", in any case, gives that option's letter, and an empty one the first: flagged
``no_letter``. ``RULES``:

llava15  the above
lmms     lmms-eval's mme_realworld/utils.py looks inside "(A)" .. "(E)" alone, without the texts
libmoe   as lmms

``meta["task"]`` is Perception or Reasoning; groups are the subtasks.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from eval.metrics.aggregates import choice_chance, parts, share
from eval.metrics.letters import letter_score
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

LETTERS = "ABCDE"
LETTER = re.compile(f"[{LETTERS}]")
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
MOST_WORDS = 10  # of an answer that is looked for inside the options


def score(text: str, sample: Sample) -> Score:
    """Right or wrong by the letter, else by the text of an option."""
    options = zip(LETTERS, sample.options, strict=False)
    return _score(text, sample, [f"({letter}) {option}" for letter, option in options])


def score_lmms(text: str, sample: Sample) -> Score:
    """Right or wrong by the letter, else by a part of "(A)" .. "(E)"."""
    return _score(text, sample, [f"({letter})" for letter in LETTERS])


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Accuracy over all rows and over each task."""
    metrics = {"accuracy": share(rows, "accuracy", choice_chance(rows))}
    for task, members in parts(rows, lambda sample: str(sample.meta["task"])).items():
        metrics[f"accuracy_{task.lower()}"] = share(members, "accuracy", choice_chance(members))
    return metrics


RULES = {
    "llava15": Rule(score, aggregate),
    "lmms": Rule(score_lmms, aggregate),
    "libmoe": Rule(score_lmms, aggregate),
}


def _score(text: str, sample: Sample, choices: Sequence[str]) -> Score:
    text = text.strip()
    for phrase in PHRASES:
        text = text.replace(phrase, "")
    if letter := LETTER.search(text):
        return letter_score(letter[0], sample)
    short = len(text.split()) <= MOST_WORDS
    found = [choice[1] for choice in choices if short and text.lower() in choice.lower()]
    scored = letter_score(found[0] if found else None, sample)
    return replace(scored, flags=(*scored.flags, "no_letter")) if found else scored
