"""VQA tables: the columns of a row -> a question, with lettered options if any, and its answer."""

from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_prep.normalising.faults import RowError, short, text_of
from data_prep.normalising.options import COLUMNS, LISTS, Table, is_empty
from data_prep.questions import LETTER
from llava_compete.names import nearest
from llava_compete.processor import IMAGE_TOKEN

Row = Mapping[str, Any]


def parse_columns(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``image=img1,img2`` and its like; ValueError for what a table is not read for."""
    columns: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        found = tuple(listed.split(","))
        if not equals or not all(found):
            raise ValueError(f"columns: {word!r} must be NAME=COLUMN or NAME=COLUMN,COLUMN")
        if name not in COLUMNS:
            raise ValueError(f"columns: {name!r} is none of a VQA row's{nearest(name, COLUMNS)}")
        if name in columns:
            raise ValueError(f"columns: {name} is said twice")
        if len(found) > 1 and name not in LISTS:
            raise ValueError(f"columns: {name}={listed} must be one column")
        columns[name] = found
    return columns


def check_columns(columns: Mapping[str, Sequence[str]], present: Collection[str]) -> None:
    """ValueError for a column that the table does not have."""
    for name, listed in columns.items():
        for column in listed:
            if column not in present:
                raise ValueError(
                    f"columns: {name}={column}: the table has no column {column!r}"
                    f"{nearest(column, present)}"
                )


def question_and_answer(row: Row, table: Table, num_images: int) -> tuple[str, str]:
    """The question with placeholders and options, and the answer; RowError where one is not there.

    Images stand before a question that does not place them itself. With options the answer is the
    letter of the right one.
    """
    questions = table.values(row, "question")
    if not questions:
        raise RowError("question", f"no question; the row has {sorted(map(str, row))}")
    question = text_of(questions[0], "the question").strip()
    if IMAGE_TOKEN not in question:
        question = f"{IMAGE_TOKEN}\n" * num_images + question
    options = _options(table.values(row, "options"))
    answers = table.values(row, "answer")
    lines = [question]
    if options:
        letters = string.ascii_uppercase[: len(options)]
        lines += [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
        answer = _right_letter(answers, options, table.answer_is)
    else:
        answer = _consensus(answers)
    instruction = LETTER.strip() if options and table.instruction is None else table.instruction
    return "\n".join([*lines, instruction] if instruction else lines), answer


def _consensus(cells: Sequence[Any]) -> str:
    """The commonest answer, letter case and outer white space aside; of equals the first.

    Each annotator counts once, as in VQA's ``multiple_choice_answer`` (arXiv:1505.00468). The
    spelling is the first of those that won.
    """
    texts = [_plain(answer) for answer in _answers(cells)]
    if not texts:
        raise RowError("answer", "no answer: a row without one cannot be trained on")
    counts = Counter(text.casefold() for text in texts)
    winner = counts.most_common(1)[0][0]
    return next(text for text in texts if text.casefold() == winner)


def _answers(cells: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for cell in cells:
        listed = _json_list(cell) if isinstance(cell, str) else None
        if listed is not None and all(isinstance(item, str | dict) for item in listed):
            cell = listed
        for answer in cell if isinstance(cell, list) else [cell]:
            value = answer.get("answer") if isinstance(answer, dict) else answer
            if not is_empty(value):
                found.append(value)
    return found


def _options(cells: Sequence[Any]) -> list[str]:
    """Texts of the options without letters of their own; empty where the row has none."""
    if len(cells) == 1:
        cells = _listed_options(cells[0])
    options = [_plain(cell) for cell in cells]
    if options and not 2 <= len(options) <= len(string.ascii_uppercase):
        raise RowError("options", f"2 to 26 options are needed, got {short(options)}")
    marks = [
        re.match(rf"\({letter}\)\s*|{letter}[.):]\s+", option)
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    ]
    if all(marks):
        options = [
            option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark
        ]
    if not all(options):
        raise RowError("options", f"an option is empty: {short(options)}")
    return options


def _listed_options(cell: Any) -> list[Any]:
    """A list, or text that writes one as JSON or as Python does."""
    if isinstance(cell, str) and (listed := _json_list(cell)) is not None:
        return listed
    if isinstance(cell, str):
        try:
            cell = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise RowError("options", f"options {short(cell)} are no list") from None
    if not isinstance(cell, list):
        raise RowError("options", f"options must be a list, got {short(cell)}")
    return cell


def _right_letter(cells: Sequence[Any], options: Sequence[str], answer_is: str) -> str:
    """The letter of the option that the answer names; RowError where that is none or not one."""
    answers = _answers(cells)
    number = answers[0] if len(answers) == 1 and type(answers[0]) is int else None
    answer = _consensus(cells)
    letters = string.ascii_uppercase[: len(options)]
    readings = {
        "letter": [letter for letter in letters if answer.strip("().: ").upper() == letter],
        "index": [letter for index, letter in enumerate(letters) if answer == str(index)],
        "text": [
            letter
            for letter, option in zip(letters, options, strict=True)
            if option.casefold() == answer.casefold()
        ],
    }
    if answer_is != "auto":
        readings = {answer_is: readings[answer_is]}
    elif number is not None:
        readings = {"index": readings["index"]}
    right = sorted({letter for found in readings.values() for letter in found})
    if len(right) != 1:
        fault = "names no option" if not right else f"may mean any of {', '.join(right)}"
        raise RowError(
            "answer",
            f"the answer {short(answer)} {fault} of {short(list(options))}, read as "
            f"{' or '.join(readings)}: --answer_is says how it is meant (an index counts from 0)",
        )
    return right[0]


def _json_list(cell: str) -> list[Any] | None:
    if not cell.strip().startswith("["):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def image_cells(row: Row, table: Table) -> list[Any]:
    """The pictures of a row; a text cell may write a JSON list of file names."""
    found: list[Any] = []
    for cell in table.values(row, "image"):
        listed = _json_list(cell) if isinstance(cell, str) else None
        found += listed if listed is not None else cell if isinstance(cell, list) else [cell]
    return found


def _plain(value: Any) -> str:
    """A text or a number as stripped text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("text", f"a text or a number is needed, got {short(value)}")
    return text_of(str(value), "the value").strip()
