"""Why a row cannot be used."""

from __future__ import annotations

from typing import Any

WRONG_WIDTH = "(fields)"  # key of a CSV row that has more or fewer fields than the header


class RowError(ValueError):
    """A row that cannot be used; such rows are counted under ``reason``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def short(value: Any) -> str:
    """The value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def text_of(value: Any, what: str) -> str:
    """``value`` as it is; RowError unless it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise RowError("text", f"{what} must be text, got {short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("text", f"{what} holds half a surrogate pair: {error}") from error
    return value
