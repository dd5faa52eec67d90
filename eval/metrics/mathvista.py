"""MathVista (arXiv:2310.02255) without a judge: answers that a rule can extract.

The benchmark lets GPT extract an answer unless the text is one already (extract_answer.py), then
normalises and compares (calculate_score.py). Here what GPT would have to read is not parsed, is
wrong and flagged ``unparsed``, so the score is a lower bound and named ``rule_accuracy``.

``meta`` has ``question_type`` (multi_choice or free_form), ``answer_type`` (text, integer, float or
list) and ``precision`` (decimals of a float, else None); ``options`` are the choices and the
reference is the answer as the data set writes it, for multi_choice the text of the choice.

Extracted are a text that is a choice; for an integer or a float what Python's ``int`` or ``float``
reads; and what stands in 'The answer is "...".', the script's quick extraction. Taken as well,
since an extraction would not change them: a bare letter of a choice, with or without brackets or a
period, a text that starts with such a letter in brackets, and for a list a text in square brackets.

Normalised: a letter, in brackets anywhere first, gives its choice, and any other text the choice at
the smallest edit distance, the first of equals; an integer is cut to a whole number, a float is
rounded. The comparison is of texts, so 1.5 is not "1.50".
"""

import math
import re
import string
from collections.abc import Sequence

from eval.metrics.aggregates import share
from eval.metrics.edit_distance import edit_distance
from eval.metrics.letters import offered
from eval.task import Metric, Sample, Score, Scored

LETTER_ALONE = re.compile(r"\(?([A-Z])\)?\.?")
BRACKETED = re.compile(r"\(([a-zA-Z])\)")
QUOTED = re.compile(r'The answer is "(.*)"\.')
LIST = re.compile(r"\[.*\]", re.DOTALL)


def score(text: str, sample: Sample) -> Score:
    """Right when the normalised extraction is the reference."""
    extracted = extract(text.strip(), sample)
    parsed = None if extracted is None else normalise(extracted, sample)
    right = parsed is not None and parsed.strip() == sample.references[0].strip()
    flags = ("unparsed",) if parsed is None else ()
    return Score(parsed, {"rule_accuracy": float(right)}, flags)


def extract(text: str, sample: Sample) -> str | None:
    """The answer a text is, None where a judge would have to read it."""
    is_choice = sample.meta["question_type"] == "multi_choice"
    if is_choice and text in sample.options:
        return text
    written = LETTER_ALONE.fullmatch(text) or BRACKETED.match(text)
    if is_choice and written and written[1].upper() in offered(sample):
        return str(written[1].upper())
    answer_type = sample.meta["answer_type"]
    if answer_type == "integer" and (whole := _integer(text)) is not None:
        return str(whole)
    if answer_type == "float" and (number := _float(text)) is not None:
        return str(number)
    if answer_type == "list" and LIST.fullmatch(text):
        return text
    quoted = QUOTED.search(text)
    return str(quoted[1]) if quoted and quoted[1].strip() else None


def normalise(extracted: str, sample: Sample) -> str | None:
    """The extraction in the form of the reference, None where it has none."""
    if sample.meta["question_type"] == "multi_choice":
        return _choice(extracted.strip(), sample.options)
    answer_type = sample.meta["answer_type"]
    if answer_type == "integer":
        number = _float(extracted)
        return None if number is None or not math.isfinite(number) else str(int(number))
    if answer_type == "float":
        number = _float(extracted)
        return None if number is None else str(round(number, int(sample.meta["precision"])))
    return extracted


def aggregate(rows: Sequence[Scored]) -> dict[str, Metric]:
    """Share of right answers; what was not parsed counts as wrong."""
    return {"rule_accuracy": share(rows, "rule_accuracy")}


def _choice(text: str, choices: Sequence[str]) -> str:
    bracketed = BRACKETED.search(text)
    letter = bracketed[1].upper() if bracketed else text
    place = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    return min(choices, key=lambda choice: edit_distance(letter, choice))


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
