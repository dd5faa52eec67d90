"""Rows of LLaVA, ShareGPT, OpenAI and VQA tables -> LLaVA's turns and the pictures they show.

A function a format, from a row to a Draft; RowError says why a row has none. Whether the turns
make a conversation is for llava_compete.data.to_messages to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from data_prep.normalising.faults import WRONG_WIDTH, RowError, short, text_of
from data_prep.normalising.options import COLUMNS, Table
from data_prep.normalising.vqa import image_cells, question_and_answer
from llava_compete.processor import IMAGE_TOKEN

Row = Mapping[str, Any]

# Speaker in a row -> LLaVA's.
LLAVA_ROLES = {"human": "human", "gpt": "gpt", "system": "system"}
SHAREGPT_ROLES = {**LLAVA_ROLES, "user": "human", "assistant": "gpt"}
OPENAI_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
# What would be lost without a word: the text that is left would not say the same.
NOT_CARRIED = ("video", "videos", "audio", "audios", "tools", "functions", "tool_calls")


class Draft(NamedTuple):
    """A row in LLaVA's form, its pictures as the row has them: names, data URLs, bytes."""

    turns: list[dict[str, str]]  # "from", "value"
    images: list[Any]
    used: set[str]  # keys of the row that are read


def llava(row: Row) -> Draft:
    """``{"conversations": [{"from": human|gpt|system, "value"}], "image"?: one or a list}``."""
    _refuse_foreign(row, {"messages": "openai", "images": "sharegpt"})
    turns = [_turn(turn, "from", "value", LLAVA_ROLES) for turn in _turns(row, "conversations")]
    return Draft(turns, _several(row.get("image")), {"conversations", "image"})


def sharegpt(row: Row) -> Draft:
    """``{"conversations": [...], "images"?: one or a list, "system"?: text}``.

    A turn has "from" and "value", or "role" and "content"; speakers are human or user, gpt or
    assistant, system.
    """
    _refuse_foreign(row, {"messages": "openai"})
    turns = []
    if row.get("system") is not None:
        turns.append({"from": "system", "value": text_of(row["system"], "'system'")})
    for turn in _turns(row, "conversations"):
        by_role = isinstance(turn, dict) and turn.get("role") is not None
        keys = ("role", "content") if by_role else ("from", "value")
        turns.append(_turn(turn, *keys, SHAREGPT_ROLES))
    images = _several(row.get("images")) + _several(row.get("image"))
    used = {"conversations", "images", "image", "system"}
    return Draft(_without_silence(turns), images, used)


def openai(row: Row) -> Draft:
    """``{"messages": [{"role", "content": text or parts}], "images"?: one or a list}``.

    A part is ``{"type": "text", "text"}``, ``{"type": "image_url", "image_url": {"url"}}`` or
    ``{"type": "image"}``, which shows the next of ``images`` as <image> in a text does.
    """
    _refuse_foreign(row, {"conversations": "sharegpt"})
    left = _several(row.get("images")) + _several(row.get("image"))
    images: list[Any] = []
    turns = []
    for message in _turns(row, "messages"):
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            pieces = [_part(part) for part in message["content"]]
            message = {**message, "content": _joined(pieces)}
        else:
            pieces = []
        turns.append(_turn(message, "role", "content", OPENAI_ROLES))
        for piece in pieces or [message["content"]]:
            if isinstance(piece, _Shown):
                images.append(piece.image)
                continue
            placed = piece.count(IMAGE_TOKEN)
            if placed > len(left):
                raise RowError(
                    "conversation", f"more {IMAGE_TOKEN} in the messages than 'images' holds"
                )
            images += left[:placed]
            left = left[placed:]
    turns = _without_silence(turns)
    return Draft(turns, images + left, {"messages", "images", "image"})


def vqa(row: Row, table: Table) -> Draft:
    """One question and its answer, from the columns that ``table`` names."""
    _refuse_foreign(row, {"conversations": "llava", "messages": "openai"})
    if WRONG_WIDTH in row:
        raise RowError("fields", f"the line has {row[WRONG_WIDTH]}: quote cells that hold commas")
    images = _several(image_cells(row, table))
    question, answer = question_and_answer(row, table, len(images))
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return Draft(turns, images, table.used())


READERS: dict[str, Callable[..., Draft]] = {
    "llava": llava,
    "sharegpt": sharegpt,
    "openai": openai,
    "vqa": vqa,
}


def reader(name: str, table: Table) -> Callable[[Row], Draft]:
    """The function of the format ``name``."""
    return partial(vqa, table=table) if name == "vqa" else READERS[name]


def detect(rows: Sequence[Row], columns: Collection[str], table: Table) -> str:
    """The format of a file by the keys of its first row, of its columns where that tells nothing.

    ``rows`` are some first ones: whether speakers and images are LLaVA's shows in any of them.
    ValueError where the keys fit no format or two.
    """
    found = _fitting(rows[0], table) or _fitting(columns, table)
    if found == ["sharegpt"] and all(map(_is_llava, rows)):
        return "llava"
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"the first row has the keys {sorted(map(str, rows[0]))}, which fit "
        f"{' and '.join(found) or 'no format'}: llava and sharegpt have 'conversations', openai "
        f"'messages', vqa 'question' and 'answer' or what --columns says; --format names one"
    )


def _fitting(keys: Collection[str], table: Table) -> list[str]:
    found = []
    if "conversations" in keys:
        found.append("sharegpt")
    if "messages" in keys:
        found.append("openai")
    if table.columns or (not found and any(name in keys for name in COLUMNS["question"])):
        found.append("vqa")
    return found


def _is_llava(row: Row) -> bool:
    turns = row.get("conversations", [])
    plain = "images" not in row and "system" not in row and isinstance(turns, list)
    return plain and all(
        isinstance(turn, dict) and turn.get("from") in [*LLAVA_ROLES] for turn in turns
    )


class _Shown(NamedTuple):
    """A picture in a message's content."""

    image: Any


def _part(part: Any) -> str | _Shown:
    """The text of a content part, which is <image> for the next of the row's images."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return text_of(part.get("text"), "a part of type text")
    if kind == "image_url":
        url = part.get("image_url")
        return _Shown(url.get("url") if isinstance(url, dict) else url)
    if kind == "image":
        own = [part[key] for key in ("image", "url", "path") if part.get(key) is not None]
        return _Shown(own[0]) if own else IMAGE_TOKEN
    raise RowError("content", f"a part must be of type text, image_url or image, got {short(part)}")


def _joined(pieces: list[str | _Shown]) -> str:
    """One text, a line a part; a message's only picture stands first, as it is trained on."""
    texts = [IMAGE_TOKEN if isinstance(piece, _Shown) else piece for piece in pieces]
    if sum(text.count(IMAGE_TOKEN) for text in texts) == 1 and IMAGE_TOKEN in texts:
        texts.remove(IMAGE_TOKEN)
        texts.insert(0, IMAGE_TOKEN)
    return "\n".join(texts)


def _turns(row: Row, key: str) -> list[Any]:
    turns = row.get(key)
    if isinstance(turns, list):
        return turns
    if turns is None:
        raise RowError("another format", f"no {key!r}; the row has {sorted(map(str, row))}")
    raise RowError("another format", f"{key!r} must be a list of turns, got {short(turns)}")


def _turn(turn: Any, speaker: str, text: str, roles: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RowError("another format", f"a turn must be an object, got {short(turn)}")
    _refuse_lost(turn)
    role = turn.get(speaker)
    if not isinstance(role, str) or role not in roles:
        raise RowError("speaker", f"{speaker!r} must be one of {sorted(roles)}, got {short(role)}")
    return {"from": roles[role], "value": text_of(turn.get(text), f"{text!r} of a turn")}


def _without_silence(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Exporters write an empty system turn where there is no system text."""
    return [turn for turn in turns if turn["from"] != "system" or turn["value"].strip()]


def _refuse_foreign(row: Row, formats: Mapping[str, str]) -> None:
    _refuse_lost(row)
    for key, name in formats.items():
        if row.get(key) is not None:
            raise RowError("another format", f"the row has {key!r}: that is {name}'s, see --format")


def _refuse_lost(values: Row) -> None:
    for key in NOT_CARRIED:
        if values.get(key):
            raise RowError("more than text and images", f"{key!r} cannot be carried over")


def _several(value: Any) -> list[Any]:
    """The pictures that are there: one or a list; None, empty text and empty structs left out."""
    listed = value if isinstance(value, list) else [value]
    return [image for image in listed if image not in (None, "", {"bytes": None, "path": None})]
