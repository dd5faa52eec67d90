"""VQA accuracy of ten human answers (arXiv:1505.00468, arXiv:1612.00837; vqaEval.py).

Each of the ten answers is left out in turn; the prediction scores min(1, matches / 3) among the
other nine, and the ten scores are averaged: one match gives 0.3, two 0.6, three 0.9, four 1.

Texts are compared in a normal form whose quirks are kept:

- Each of 21 punctuation marks is deleted if it stands next to a space anywhere in the text, or if
  the text has a digit, a comma and a digit in a row anywhere (then all marks are deleted); else it
  becomes a space. Spaces are looked for in the text as it was, not as earlier marks left it.
- A period that no digit follows is deleted, the first 32 of them: the script passes ``re.UNICODE``
  (32) where the count belongs. Its look-behind for a digit is misspelt and never fires, so "5."
  loses its period (VLMEvalKit repaired that and differs).
- Then lower case, number words none/zero..ten to digits, articles dropped, contractions repaired.

``RULES``:

always_normalise    both sides are normalised; the default, since LLaVA normalises before upload
official_unanimous  vqaEval.py to the letter: where the ten raw answers are identical, neither side
                    is normalised, so "2." against ten times "2" scores 0
m4c                 the form of m4c_evaluator.py (EvalAIAnswerProcessor), for TextVQA, VizWiz and
                    uploads: lower-cases first, deletes commas and question marks and puts a space
                    before 's, so "red,white" is one word here and two words above
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from eval.metrics.aggregates import average
from eval.metrics.contractions import CONTRACTIONS
from eval.metrics.rules import Rule
from eval.task import Metric, Sample, Score, Scored

ANSWERS = 10
MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS_AND_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_DELETED = 32
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"} | {
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = ("a", "an", "the")
CACHED = 1 << 16  # most answers of a set come again and again


@lru_cache(CACHED)
def normalise(text: str) -> str:
    """The form in which vqaEval.py compares."""
    return _words(_unpunctuated(_one_line(text)))


@lru_cache(CACHED)
def normalise_m4c(text: str) -> str:
    """The form in which m4c_evaluator.py and EvalAI compare."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(_unpunctuated(_one_line(text)))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of texts that are in their normal form already."""
    matches = sum(answer == prediction for answer in answers)
    scores = [min(1.0, (matches - (answer == prediction)) / 3) for answer in answers]
    return sum(scores) / len(scores)


def score(text: str, sample: Sample) -> Score:
    """Both sides normalised as in vqaEval.py; ``references`` are the ten answers."""
    return _score(normalise, text, _ten(sample))


def score_official_unanimous(text: str, sample: Sample) -> Score:
    """The same, but nothing is normalised where the ten raw answers are identical."""
    answers = [_one_line(answer) for answer in _ten(sample)]
    return _score(_one_line if len(set(answers)) == 1 else normalise, text, answers)


def score_m4c(text: str, sample: Sample) -> Score:
    """Both sides normalised as in m4c_evaluator.py."""
    return _score(normalise_m4c, text, _ten(sample))


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """The mean over questions."""
    return {"vqa_accuracy": average(rows, "vqa_accuracy")}


RULES = {
    "always_normalise": Rule(score, aggregate),
    "official_unanimous": Rule(score_official_unanimous, aggregate),
    "m4c": Rule(score_m4c, aggregate),
}


def _score(form: Callable[[str], str], text: str, answers: Sequence[str]) -> Score:
    parsed = form(text)
    return Score(parsed, {"vqa_accuracy": accuracy(parsed, [form(answer) for answer in answers])})


def _ten(sample: Sample) -> tuple[str, ...]:
    if len(sample.references) != ANSWERS:
        raise ValueError(
            f"sample {sample.id} has {len(sample.references)} references: VQA accuracy is defined "
            f"over {ANSWERS} human answers"
        )
    return sample.references


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _unpunctuated(text: str) -> str:
    numbered = DIGITS_AND_COMMA.search(text) is not None
    out = text
    for mark in MARKS:
        deleted = numbered or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if deleted else " ")
    return PERIOD.sub("", out, count=PERIODS_DELETED)


def _words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
