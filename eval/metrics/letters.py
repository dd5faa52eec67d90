"""Letters of options, and the score of an answer that a rule turned into one."""

import string

from eval.task import Sample, Score


def offered(sample: Sample) -> str:
    """The letters of a question's options: "ABCD" for four."""
    return string.ascii_uppercase[: len(sample.options)]


def letter_score(parsed: str | None, sample: Sample) -> Score:
    """Right when the letter is the first reference.

    An answer without a letter is wrong and flagged ``unparsed``, a letter that the question does
    not offer is wrong and flagged ``not_offered``; what a question without options offers is not
    known.
    """
    flags: tuple[str, ...] = ()
    if parsed is None:
        flags = ("unparsed",)
    elif sample.options and parsed not in offered(sample):
        flags = ("not_offered",)
    return Score(parsed, {"accuracy": float(parsed == sample.references[0])}, flags)
