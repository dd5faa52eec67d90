"""Open answers of MMMU (arXiv:2311.16502, eval_utils.py).

A text, in lower case and without periods at its ends, is cut into lines; the script means to cut
at sentences too, but looks for a capital after it lower-cased. Of each line that has one of the key
words below, the shortest tail behind one is kept (in the last line, also what is behind "="),
unless it is a lone mark; without any tail the whole text is. Candidates are the tails and all
numbers in them. What reads as a number, thousands commas allowed, is rounded to two decimals; a
text of one letter becomes that letter with a space before it and with one behind, so that it
matches no word.

A text candidate is right when a reference that is text is contained in it, a number when a
reference is that number.
"""

import re
from collections.abc import Iterable, Iterator

KEY_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
LAST_KEY_WORD = "="
LONE_MARKS = (":", ",", ".", "!", "?", ";", "'")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with thousands commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # neither
)

Candidate = str | float


def parse(text: str) -> list[Candidate]:
    """The candidates of an answer, each once, in the order they are found in."""
    tails = key_tails(text)
    numbers = [number for tail in tails for pattern in NUMBERS for number in pattern.findall(tail)]
    return list(dict.fromkeys(_normalised([*tails, *numbers])))


def key_tails(text: str) -> list[str]:
    """What stands behind the key words, line by line, or the whole text."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    tails = []
    for place, line in enumerate(lines, start=1):
        key_words = (*KEY_WORDS, LAST_KEY_WORD) if place == len(lines) else KEY_WORDS
        tail = _shortest_tail(line, key_words)
        if tail and tail not in LONE_MARKS:
            tails.append(tail)
    return tails or [text]


def is_right(candidates: Iterable[Candidate], references: Iterable[str]) -> bool:
    """Whether any candidate meets any reference."""
    wanted = list(_normalised(references))
    texts = [reference for reference in wanted if isinstance(reference, str)]
    return any(
        any(text in candidate for text in texts)
        if isinstance(candidate, str)
        else candidate in wanted
        for candidate in candidates
    )


def _shortest_tail(line: str, key_words: Iterable[str]) -> str:
    shortest = ""
    for word in key_words:
        if word in line:
            tail = line.split(word)[-1].strip()
            # An empty tail gives way to the next one, whatever its length.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalised(texts: Iterable[str]) -> Iterator[Candidate]:
    for text in texts:
        text = text.strip()
        number = _number(text)
        if number is not None:
            yield round(number, 2)
        elif len(text.lower()) == 1:
            yield from (f" {text.lower()}", f"{text.lower()} ")
        else:
            yield text.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
