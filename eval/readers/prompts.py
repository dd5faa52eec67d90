"""The forms in which a question is put to a model, and the profiles that disagree on them.

Forms: ``short`` (S) asks for a word or phrase, ``lettered`` (L) for an option's letter; a question
alone (N) is its own prompt. The wordings are those of LLaVA-1.5's question files. A profile names
whose prompts, and whose scoring rules, a run follows; a task's docstring says where they differ.
"""

import string
from collections.abc import Mapping, Sequence
from typing import TypeVar

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

T = TypeVar("T")


def short(question: str, instruction: str = SHORT) -> str:
    """Form S: the question, then the instruction on a line of its own."""
    return f"{question}\n{instruction}"


def lettered(question: str, options: Sequence[str], instruction: str = LETTER) -> str:
    """Form L: the question, a line such as "A. red" for each option, the instruction."""
    return "\n".join([question, *option_lines(options), instruction])


def option_lines(options: Sequence[str]) -> list[str]:
    """The options, each behind its letter and a period."""
    letters = string.ascii_uppercase[: len(options)]
    return [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]


def of_profile(task: str, profile: str, known: Mapping[str, T]) -> T:
    """What ``known`` has for ``profile``; ValueError names the profiles that the task has."""
    if profile not in known:
        raise ValueError(f"profile={profile!r}: {task} has {', '.join(known)}")
    return known[profile]
