"""A LLaVA row: what it must look like, and the chat messages it becomes.

    {"id": "7", "image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat
     is it?"}, {"from": "gpt", "value": "A box."}]}

Keys that are not named here, of a row or of a turn, are kept by whoever holds the row and not read.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from reprlib import Repr
from typing import Any

from llava_compete.processor import IMAGE_TOKEN, Message, count_images

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
MAX_SHOWN = 200  # characters of a value that an error quotes
_REPR = Repr()  # looks at no more of a value than it shows: a text may have 100 MB
_REPR.maxstring = _REPR.maxother = MAX_SHOWN // 2


def to_messages(row: Mapping[str, Any], name: str | None = None) -> list[Message]:
    """A LLaVA row's ``conversations`` as chat messages.

    ValueError "sample NAME: fault; fix" for a row that is not as docs/data.md says. ``name`` is
    what it calls the row, its id where that is None.
    """
    try:
        return _messages(row)
    except ValueError as error:
        raise ValueError(f"sample {name or _own_name(row) or 'without id'}: {error}") from None


def image_files(row: Mapping[str, Any], name: str | None = None) -> list[str]:
    """The row's image files: ``image`` is absent, null, one name or a list of names."""
    try:
        return _files(row)
    except ValueError as error:
        raise ValueError(f"sample {name or _own_name(row) or 'without id'}: {error}") from None


def source_of(row: Mapping[str, Any]) -> str:
    """Where the row comes from, for counts by source.

    Its ``source`` if that is a text, else the first folder of its first image, "images" where that
    lies in no folder, "text" for a row without image.
    """
    source = row.get("source")
    if isinstance(source, str) and source:
        return source
    files = image_files(row)
    if not files:
        return "text"
    folders = [part for part in files[0].split("/")[:-1] if part not in ("", ".")]
    return folders[0] if folders else "images"


def row_name(row: Mapping[str, Any], number: int) -> str:
    """The row's id as text that can be printed, or "number N" (from 0) where it has none."""
    return _own_name(row) or f"number {number}"


def shown(value: object) -> str:
    """``value`` as an error quotes it: printable, on one line, MAX_SHOWN characters at most."""
    text = value if isinstance(value, str) else _REPR.repr(value)
    cut = text[:MAX_SHOWN] + ("..." if len(text) > MAX_SHOWN else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _own_name(row: object) -> str | None:
    name = row.get("id") if isinstance(row, Mapping) else None
    named = isinstance(name, str | int | float) and not isinstance(name, bool)
    return shown(str(name)) if named and name != "" else None


def _messages(row: object) -> list[Message]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, found {_type(row)}")
    if row.get("id") is not None and _own_name(row) is None:
        raise ValueError(
            f"id must be a text or a number, found {_type(row['id'])}; or leave it out"
        )
    turns = row.get("conversations")
    if turns is None or turns == []:
        raise ValueError("no conversations; a row needs a list of turns under that key")
    if not isinstance(turns, list):
        raise ValueError(f"conversations must be a list of turns, found {_type(turns)}")
    messages = [_message(turn, place) for place, turn in enumerate(turns, start=1)]
    _check_order([turn["from"] for turn in turns])
    files = _files(row)
    if (wanted := count_images(messages)) != len(files):
        raise ValueError(
            f"{wanted} {IMAGE_TOKEN} in the text, images: {shown(files)}; each image needs one "
            f"{IMAGE_TOKEN} in a human turn"
        )
    _check_length(row)
    return messages


def _message(turn: object, place: int) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {place} must be an object, found {_type(turn)}")
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in ROLES or not isinstance(text, str):
        raise ValueError(
            f"turn {place}: a turn needs 'from' (one of {sorted(ROLES)}) and 'value' (text), got "
            f"{shown(dict(turn))}; python -m data_prep normalise reads other formats"
        )
    _refuse_half_characters(text, f"turn {place}")
    if not text.strip():
        what = {"human": "question", "gpt": "answer", "system": "system text"}[speaker]
        raise ValueError(f"turn {place}: the {what} is empty; drop the turn or the row")
    if speaker != "human" and IMAGE_TOKEN in text:
        what = "answer" if speaker == "gpt" else "system text"
        raise ValueError(
            f"turn {place}: {IMAGE_TOKEN} in the {what}; it stands for a picture, which only a "
            f"human turn can show: write it otherwise or drop the row"
        )
    return {"role": ROLES[speaker], "content": _content(text, place)}


def _check_order(speakers: Sequence[str]) -> None:
    if "system" in speakers[1:]:
        place = speakers.index("system", 1) + 1
        raise ValueError(f"turn {place} is system's, which may only come first; move or drop it")
    begin = speakers.count("system")
    spoken = speakers[begin:]
    if spoken and spoken == ["human", "gpt"] * (len(spoken) // 2):
        return
    rule = "human and gpt must alternate, human first"
    if spoken and spoken == ["gpt", "human"] * (len(spoken) // 2):
        raise ValueError(f"{rule}; the roles are swapped: exchange 'human' and 'gpt'")
    for place, (one, next_one) in enumerate(pairwise(spoken), start=begin + 1):
        if one == next_one:
            raise ValueError(f"{rule}; turns {place} and {place + 1} are both {one}'s: join them")
    if spoken[:1] == ["gpt"]:
        raise ValueError(f"{rule}; turn {begin + 1} is gpt's: drop it")
    raise ValueError(f"{rule}; turn {len(speakers)} has no answer: drop it")


def _files(row: Mapping[str, Any]) -> list[str]:
    image = row.get("image")
    if image is None:
        return []
    files = [image] if isinstance(image, str) else image
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"image must be a file name or a list of names, found {shown(image)}")
    for file in files:
        if not file.strip():
            raise ValueError("image is an empty text; leave it out of a row without picture")
        if "\0" in file:
            raise ValueError(f"image {shown(file)} holds a NUL character; no file is called so")
        _refuse_half_characters(file, "image")
    return list(files)


def _check_length(row: Mapping[str, Any]) -> None:
    # Other people's rows may have a "length" of their own: it is ours where it says by what.
    if row.get("length_by") is None:
        return
    length = row.get("length")
    if type(length) is not int or length < 1:
        raise ValueError(
            f"length must be a whole number of tokens, found {_type(length)}; leave length "
            f"and length_by out, or write the file again by python -m data_prep normalise"
        )


def _refuse_half_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start + 1} is half of one (lone surrogate "
            f"{shown(text[error.start])}), as a text cut inside an escape pair has; drop it"
        ) from None


def _type(value: object) -> str:
    return f"{type(value).__name__} {shown(_REPR.repr(value))}"


def _content(text: str, place: int) -> list[dict[str, str]]:
    """Text pieces with image items between; the template writes the line break after an image.

    A turn's only image comes first wherever it stood, as in LLaVA and as in evaluation. Line breaks
    around an image and at both ends of a turn are dropped.
    """
    if text.count(IMAGE_TOKEN) == 1:
        question = text.replace(IMAGE_TOKEN, "").strip()
        if IMAGE_TOKEN in question:
            raise ValueError(
                f"turn {place}: the text around {IMAGE_TOKEN} reads as one; rewrite it"
            )
        image = {"type": "image"}
        return [image, {"type": "text", "text": question}] if question else [image]
    items: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        if index:
            items.append({"type": "image"})
        if piece := piece.strip("\n"):
            items.append({"type": "text", "text": piece})
    return items
