"""Pictures of tables as files: each content once, in ``ROOT/.pictures/SHA256.EXT``.

A parquet cell is ``{"bytes", "path"}``, a TSV cell base64: neither is a file that a run can name.
The name is taken for the content's digest from then on, so nobody else writes there.
"""

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from eval.readers.memory import FOLDER

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp"} | {
    "BMP": "bmp",
    "TIFF": "tiff",
}

Content = Mapping[str, Any] | str | bytes | None


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is read only where its picture is not kept yet.

    ``name`` is that of the picture's file, "" where it was not kept before; ``note`` is told it.
    """

    name: str
    read: Callable[[], Content]
    note: Callable[[str], None]


def keep_picture(root: Path, where: str, cell: Cell | Content) -> Path:
    """The file that holds the picture of ``cell``, written if it is not there yet.

    ValueError names ``where`` if the cell holds no picture that Pillow can tell.
    """
    if isinstance(cell, Cell):
        if cell.name and (kept := root / FOLDER / cell.name).is_file():
            return kept
        kept = keep_picture(root, where, cell.read())
        cell.note(kept.name)
        return kept
    content = _content(where, cell)
    name = f"{hashlib.sha256(content).hexdigest()}.{_extension(where, content)}"
    path = root / FOLDER / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{name}.{os.getpid()}.part")
        aside.write_bytes(content)
        aside.replace(path)
    return path


def _content(where: str, cell: Content) -> bytes:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes")
    if isinstance(cell, str):
        try:
            cell = base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where}: the picture is not base64 ({error})") from error
    if not isinstance(cell, bytes) or not cell:
        raise ValueError(f"{where}: the picture's cell is empty; its bytes were expected there")
    return cell


def _extension(where: str, content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = picture.format or ""
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: {len(content)} bytes that are no picture") from error
    if kind not in EXTENSIONS:
        raise ValueError(f"{where}: a picture of type {kind}; one of {sorted(EXTENSIONS)} is read")
    return EXTENSIONS[kind]
