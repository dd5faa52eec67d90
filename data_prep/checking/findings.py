"""What is found in one row and in one picture. Runs in worker processes and writes nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from llava_compete.data.images import FORMATS, ImageFolder
from llava_compete.data.rows import image_files, row_name, shown, source_of, to_messages

DIGEST_BYTES = 16
KNOWN_KEYS = {"id", "image", "conversations", "source", "length", "length_by"}
JPEG_SUFFIXES = (".jpg", ".jpeg")
TRUE_SUFFIXES = {"GIF": ".gif", "PNG": ".png", "WEBP": ".webp"}  # what is found under a JPEG's name
UNKNOWN_SOURCE = "unknown"  # of a row whose pictures cannot be told
NAMELESS = "sample : "  # how a message begins that was asked for without a sample's name

# Kind of a row's fault -> how to_messages begins to word it.
ROW_KINDS = {
    "empty_text": r"turn \d+: the (question|answer|system text) is empty",
    "roles": r"human and gpt must alternate|turn \d+ is system's",
    "image_in_answer": r"turn \d+: <image> in the",
    "image_count": r"\d+ <image> in the text",
}
MALFORMED = "malformed_row"  # every other

MISSING, OUTSIDE, BROKEN = "missing_image", "outside_root", "broken_image"
WRONG_EXTENSION = "wrong_extension"


class PictureFinding(NamedTuple):
    """A picture's file as rows name it.

    ``digest`` is of its bytes, or of its name where the picture cannot be had. ``kind`` is "" or
    what is wrong. ``beside`` is the file that a repair takes (missing) or makes (wrong extension).
    """

    file: str
    digest: str
    kind: str = ""
    message: str = ""
    beside: str = ""


class RowFinding(NamedTuple):
    """A row by its number, from 0, and its name.

    ``id`` and ``turns`` are digests of its id ("" without one) and of its conversation.
    """

    number: int
    name: str
    id: str
    source: str
    turns: str
    files: list[str]
    kind: str = ""
    message: str = ""


class Chunk(NamedTuple):
    """Rows that follow each other, and the pictures that no chunk before them names."""

    first: int
    rows: list[dict[str, Any]]
    new_files: list[str]


class ChunkFindings(NamedTuple):
    """What a chunk holds; ``unknown_keys`` counts the rows of each key that nothing reads."""

    rows: list[RowFinding]
    pictures: list[PictureFinding]
    unknown_keys: dict[str, int]


def inspect_chunk(chunk: Chunk, root: Path, linked_folders: Sequence[Path]) -> ChunkFindings:
    """Look at every row of ``chunk`` and decode every new picture whole."""
    images = ImageFolder(root, linked_folders)
    unknown_keys: dict[str, int] = {}
    for key in (key for row in chunk.rows for key in row if key not in KNOWN_KEYS):
        unknown_keys[key] = unknown_keys.get(key, 0) + 1
    return ChunkFindings(
        [inspect_row(row, number) for number, row in enumerate(chunk.rows, start=chunk.first)],
        [inspect_picture(images, file) for file in chunk.new_files],
        unknown_keys,
    )


def inspect_row(row: Mapping[str, Any], number: int) -> RowFinding:
    """What ``to_messages`` says of the row; its pictures are not opened."""
    name = row_name(row, number)
    kind = message = ""
    try:
        to_messages(row, name)
    except ValueError as error:
        message = str(error).removeprefix(f"sample {name}: ")
        kind = kind_of(message)
    try:
        source = shown(source_of(row))
    except ValueError:
        source = UNKNOWN_SOURCE
    turns = json.dumps(row.get("conversations"), sort_keys=True, default=str)
    return RowFinding(
        number=number,
        name=name,
        id="" if row.get("id") in (None, "") else digest_of(str(row["id"])),
        source=source,
        turns=digest_of(turns),
        files=files_of(row),
        kind=kind,
        message=message,
    )


def kind_of(message: str) -> str:
    """The kind of fault that ``to_messages`` words so."""
    return next((kind for kind, words in ROW_KINDS.items() if re.match(words, message)), MALFORMED)


def files_of(row: Mapping[str, Any]) -> list[str]:
    """The picture files of ``row``, none where they cannot be told."""
    try:
        return image_files(row)
    except ValueError:
        return []


def inspect_picture(images: ImageFolder, file: str) -> PictureFinding:
    """Find ``file``, decode it whole, and compare its content with its name."""
    try:
        path = images.find(file, "")
    except ValueError as error:
        return _not_there(images, file, str(error).removeprefix(NAMELESS))
    try:
        images.open(file, "").close()
    except ValueError as error:
        message = str(error).removeprefix(NAMELESS)
        return PictureFinding(file, digest_of(file), BROKEN, message)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, _hasher).hexdigest()
    content = content_format(path)
    named = Image.registered_extensions().get(path.suffix.lower())
    if named is None or _family(named) == content:
        return PictureFinding(file, digest)
    message = f"named {path.suffix}, but its content is {content}"
    beside = ""
    if path.suffix.lower() in JPEG_SUFFIXES and content in TRUE_SUFFIXES:
        beside = str(PurePosixPath(file).with_suffix(TRUE_SUFFIXES[content]))
    return PictureFinding(file, digest, WRONG_EXTENSION, message, beside)


def content_format(path: Path) -> str:
    """Pillow's name of what the file really is."""
    with Image.open(path, formats=FORMATS) as image:
        return _family(str(image.format))


def _family(content: str) -> str:
    return "JPEG" if content == "MPO" else content  # a JPEG with more pictures behind its first


def _not_there(images: ImageFolder, file: str, message: str) -> PictureFinding:
    digest = digest_of(file)
    if "lies outside the image folder" in message:
        return PictureFinding(file, digest, OUTSIDE, message)
    if "does not exist" not in message:
        return PictureFinding(file, digest, BROKEN, message)
    place = PurePosixPath(file)
    beside = ""
    if place.suffix.lower() in JPEG_SUFFIXES:
        siblings = [str(place.with_suffix(suffix)) for suffix in TRUE_SUFFIXES.values()]
        beside = next((sibling for sibling in siblings if _opens(images, sibling)), "")
    return PictureFinding(file, digest, MISSING, message, beside)


def _opens(images: ImageFolder, file: str) -> bool:
    try:
        images.open(file, "").close()
    except ValueError:
        return False
    return True


def digest_of(text: str) -> str:
    """32 hex digits of ``text``."""
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES
    ).hexdigest()


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)
