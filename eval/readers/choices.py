"""Fields of choice benchmarks, checked: options and letters; ``where`` is the place of the row."""

import ast
import string
from collections.abc import Mapping, Sequence
from typing import Any

from eval.readers.fields import field


def option(where: str, row: Mapping[str, Any], name: str) -> str:
    """The option in field ``name`` as it is shown; JSON files have some as numbers."""
    value = field(where, row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {name}={value!r} must be a text or a number")
    return str(value)


def texts(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The field ``name``, a list of texts or, as MMMU has it, the Python literal of one."""
    value = field(where, row, name)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{where}: {name}={value!r} is not the literal of a list") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: {name}={value!r} must be a list of texts")
    return tuple(value)


def letter(where: str, row: Mapping[str, Any], name: str, options: Sequence[str] = ()) -> str:
    """The field ``name``, a capital letter, of one of ``options`` where they are given."""
    value = field(where, row, name)
    letters = string.ascii_uppercase[: len(options) or None]
    if not isinstance(value, str) or len(value) != 1 or value not in letters:
        raise ValueError(f"{where}: {name}={value!r} must be one letter of {letters}")
    return value


def letter_of_index(where: str, row: Mapping[str, Any], name: str, options: Sequence[str]) -> str:
    """The letter of the option whose place, from 0 on, the field ``name`` gives."""
    value = str(field(where, row, name))
    if not value.isdecimal() or int(value) >= len(options):
        raise ValueError(f"{where}: {name}={value} must be the place of one of {list(options)}")
    return string.ascii_uppercase[int(value)]
