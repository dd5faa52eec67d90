"""Say what an unknown name may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """``"; did you mean a or b?"``, or where nothing is near ``"; known: a, b, ..."``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}"
