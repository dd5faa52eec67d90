"""What a row says of a picture -> a file name below the image folder, and bytes still to write.

A row names a file, carries the picture in a data URL, or, in a parquet table, holds its bytes
(``{"bytes", "path"}``, as the `datasets` library writes it). Bytes become files named by their
content, so that a picture in many rows is one file and a second run writes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from PIL import Image

from data_prep.normalising.faults import RowError, short, text_of
from llava_compete.data.aside import written_aside

SUFFIXES = {"BMP": "bmp", "GIF": "gif", "JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp"}


class Place(NamedTuple):
    """Where a row's pictures lie, and where those that it carries itself are to go."""

    image_folder: Path | None  # what file names are relative to
    subfolder: str  # of image_folder, for pictures taken out of rows


class Pictures(NamedTuple):
    """File names relative to the image folder, and the content of those that are not there yet."""

    files: list[str]
    contents: dict[str, bytes]


def resolve(images: Sequence[Any], place: Place) -> Pictures:
    """Names of the pictures; RowError for one that cannot be a local file.

    ValueError that is no RowError where a row carries a picture and no image folder is given.
    """
    files: list[str] = []
    contents: dict[str, bytes] = {}
    for image in images:
        content = _content(image)
        if content is None:
            name = image.get("path") if isinstance(image, dict) else image
            files.append(_local_name(name, place.image_folder))
            continue
        if place.image_folder is None:
            raise ValueError(
                "a row holds a picture itself: --image_folder DIR says below which folder such "
                "pictures are to be written as files"
            )
        name = f"{place.subfolder}/{_content_name(content)}"
        files.append(name)
        contents[name] = content
    return Pictures(files, contents)


def write(contents: dict[str, bytes], image_folder: Path) -> None:
    """Write each picture aside and rename it; one that is there already is left as it is."""
    for name, content in contents.items():
        path = image_folder / name
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, writer=os.getpid()) as partial:
            partial.write_bytes(content)


def _content(image: Any) -> bytes | None:
    """The bytes that a row carries; None where it names a file."""
    if isinstance(image, dict) and image.get("bytes") is not None:
        image = image["bytes"]
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _data_url(image)
    return None


def _data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise RowError("image", f"data URL {short(url)} has no comma before its content")
    content = unquote_to_bytes(body.encode("utf-8", "replace"))
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise RowError("image", f"data URL {short(url)} is not base64: {error}") from error


def _content_name(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=list(SUFFIXES)) as picture:
            suffix = SUFFIXES[picture.format or ""]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(
            "image",
            f"the picture in the row ({len(content)} bytes) is none of "
            f"{', '.join(sorted(SUFFIXES))}: {error}",
        ) from error
    digest = hashlib.sha256(content).hexdigest()[:32]
    return f"{digest[:2]}/{digest}.{suffix}"


def _local_name(name: Any, image_folder: Path | None) -> str:
    name = text_of(name, "an image's file name")
    if not name.strip():
        raise RowError("image", f"image {short(name)} must be the name of a file")
    if name[:7].lower() == "file://":
        name = unquote(name[7:])
    if "://" in name:
        raise RowError(
            "image on the web",
            f"image {short(name)} is not on this machine: download it below the image folder and "
            f"name the file",
        )
    path = PurePosixPath(name)
    if path.is_absolute():
        root = None if image_folder is None else image_folder.absolute()
        if root is None or not path.is_relative_to(root):
            raise RowError(
                "image outside the folder",
                f"image {short(name)} must lie below the image folder "
                f"({root or 'none is given'}): give --image_folder a folder above it",
            )
        path = path.relative_to(root)
        name = path.as_posix()
    if ".." in path.parts or "\0" in name or not path.parts:
        raise RowError(
            "image outside the folder",
            f"image {short(name)} must be the name of a file below the image folder, without '..'",
        )
    return name
