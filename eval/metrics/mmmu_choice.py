"""Letters of MMMU and MMMU-Pro (arXiv:2311.16502, arXiv:2409.02813; eval_utils.py), deterministic.

An answer, stripped of ``, . ! ? ; : '`` one after the other in this order and set between spaces,
gives the letters that it has

- in brackets, "(A)"; else
- as a word between spaces; else
- if it has more than five words, by an option's text, in any case.

Of several the one that stands last counts. Where there is none the script draws a random letter:
here the answer is wrong and flagged ``random_branch``.

The form ``lmms`` (lmms-eval's mmmu/utils.py, and LibMoE's fork) takes a letter and a space even
without a space before it, so "FDA " gives A, and after that a letter and a period. It still looks
for the last one between spaces: where none stands so, the first letter of the alphabet wins. Newer
versions of lmms-eval first take a last "Answer: A"; that is not followed here.
"""

from collections.abc import Sequence

STRIPPED = (",", ".", "!", "?", ";", ":", "'")
FEWEST_WORDS = 6  # of an answer that is searched for the text of an option
BRACKETED, SPACED = "({})", " {} "  # how a letter is written where it is looked for


def parse(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter an answer gives by MMMU's own script, None in its random branch."""
    text = _bare(text)
    looks = ((BRACKETED, BRACKETED), (SPACED, SPACED))
    return _written(text, letters, looks) or _by_option(text, letters, options)


def parse_lmms(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter an answer gives by lmms-eval's form."""
    text = _bare(text)
    looks = ((BRACKETED, BRACKETED), ("{} ", SPACED), ("{}.", SPACED))
    return _written(text, letters, looks) or _by_option(text, letters, options)


def _bare(text: str) -> str:
    for mark in STRIPPED:
        text = text.strip(mark)
    return f" {text} "


def _written(text: str, letters: str, looks: Sequence[tuple[str, str]]) -> str | None:
    # A letter must stand in the first form of a pair; the last one counts in the second form.
    for written, ranked in looks:
        if found := [letter for letter in letters if written.format(letter) in text]:
            return _last({letter: text.rfind(ranked.format(letter)) for letter in found})
    return None


def _by_option(text: str, letters: str, options: Sequence[str]) -> str | None:
    if len(text.split()) < FEWEST_WORDS:
        return None
    text = text.lower()
    texts = dict(zip(letters, (option.lower() for option in options), strict=True))
    places = {letter: text.rfind(option) for letter, option in texts.items() if option in text}
    return _last(places) if places else None


def _last(places: dict[str, int]) -> str:
    return max(places, key=places.__getitem__)  # the first of equals
