"""Image files: found below their folder, decoded to upright 8-bit RGB.

docs/data.md has a table of what comes through and what is refused.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from llava_compete.data.rows import shown

if TYPE_CHECKING:
    from transformers import LlavaProcessor

# Not all that Pillow knows: EPS runs a program, and a JPEG 2000 file cut short passes for whole.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 2**30 // 12  # Pillow warns above it; here it is an error
MARGIN = 4  # a picture is not shrunk before its padding to less than so many times the side

# What Pillow raises for a file of these formats that is damaged or too large.
READ_ERRORS = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB")
TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
MODES_16 = ("I;16", "I;16L", "I;16B")

TURNS = {  # EXIF orientation -> what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_side(processor: LlavaProcessor) -> int:
    """Pixels of the square that the processor resizes a padded picture to.

    A tower at several scales enlarges that square (multiscale.py): it needs no more pixels.
    """
    size = processor.image_processor.size
    return max(size["height"], size["width"])


class ImageFolder:
    """Pictures below one folder, which no path leaves.

    Links are followed within ``root`` and into ``linked_folders``, folders outside it that links
    may lead to. A folder is looked at once: a link put in its place later is not seen.
    """

    def __init__(self, root: Path, linked_folders: Sequence[Path] = ()) -> None:
        for folder in linked_folders:
            if not Path(folder).is_dir():
                raise ValueError(f"linked_folders: {folder} is not a folder")
        self.root = root
        self._allowed = [os.path.realpath(folder) for folder in (root, *linked_folders)]
        self._folders: dict[str, str] = {}  # by the name that rows give: where files are looked for

    def find(self, file: str, sample: str) -> Path:
        """``root/file``; ValueError naming the sample where it does not exist or leaves root."""
        try:
            return self._find(file)
        except FileNotFoundError:
            fault = "does not exist"
        except OSError as error:
            fault = f"cannot be reached: {error.strerror}"
        except ValueError as error:
            fault = str(error)
        raise ValueError(f"sample {sample}: image {self._shown(file)} {fault}")

    def open(self, file: str, sample: str, side: int | None = None) -> Image.Image:
        """Decode ``root/file`` to upright RGB; ValueError naming the sample where that fails.

        ``side`` is the square that the picture, padded, is going to be resized to. Its long side
        then stays ``side`` or more, but fewer pixels may come than the file has: a JPEG is decoded
        at 1/2, 1/4 or 1/8, and a picture of twice MARGIN times ``side`` is shrunk, since padding
        one of 20000 x 3 pixels to a square takes gigabytes.
        """
        path = self.find(file, sample)
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise RuntimeError(
                "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so half a picture would pass for a "
                "whole one: find what sets it and leave it False"
            )
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.format == "PNG":
                    _check_sums(path)
                return _decode(image, side)
        except UnidentifiedImageError:
            fault = _what_it_is(path)
        except READ_ERRORS as error:
            fault = str(error)
        raise ValueError(
            f"sample {sample}: image {self._shown(file)} cannot be read: {fault}; fetch it "
            f"again or drop the row"
        )

    def _find(self, file: str) -> Path:
        folder, _, name = file.rpartition("/")
        if "\0" in file:
            raise ValueError("has a NUL character in its name")
        if folder not in self._folders:
            self._folders[folder] = self._check_folder(file, folder)
        path = f"{self._folders[folder]}/{name}"
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            self._check_link(path)
            mode = os.stat(path).st_mode
        if name == ".." or not stat.S_ISREG(mode):
            raise ValueError("is not a file")
        return Path(path)

    def _check_folder(self, file: str, folder: str) -> str:
        if file.startswith("/"):
            raise ValueError("lies outside the image folder: give its name below that folder")
        if ".." in folder.split("/"):
            raise ValueError("lies outside the image folder, or may: give its name without '..'")
        path = f"{self.root}/{folder}" if folder else f"{self.root}"
        self._check_link(path)
        return path

    def _check_link(self, path: str) -> None:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(folder) for folder in self._allowed):
            raise ValueError(
                f"lies outside the image folder, in {real}, by a link: if that is meant, name "
                f"the folder in linked_folders"
            )

    def _shown(self, file: str) -> str:
        return shown(file) if file.startswith("/") else f"{self.root}/{shown(file)}"


def _check_sums(path: Path) -> None:
    """A PNG has a checksum in each chunk; decoding it Pillow passes over those of the pixels."""
    with Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _decode(image: ImageFile.ImageFile, side: int | None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} are more than {MAX_PIXELS} pixels")
    if side is not None and (factor := max(image.size) // side) > 1:
        # Pillow takes the largest of 1, 2, 4, 8 that leaves both sides this long; a JPEG only.
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
    image.load()
    turn = _turn(image)
    picture = _eight_bits(image)
    if side is not None and (factor := max(picture.size) // (MARGIN * side)) > 1:
        picture = picture.reduce(factor)
    if turn is not None:
        picture = picture.transpose(turn)
        picture.info.clear()  # else whoever heeds EXIF turns it again
    if picture.mode == "RGBA":
        # A cut-out on convert("RGB") would stand before whatever colour its hidden pixels have.
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the picture upright by its EXIF; None also where that cannot be read."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, struct.error):
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where some of it may be transparent."""
    if image.mode in MODES_16:
        # convert() clips at 255. The upper byte is what Pillow takes of 16-bit colours, too.
        values_HW = np.asarray(image)
        grey = Image.fromarray((values_HW >> 8).astype(np.uint8))
        if "transparency" not in image.info:
            return grey.convert("RGB")
        opaque_HW = values_HW != image.info["transparency"]
        return Image.merge("LA", (grey, Image.fromarray(opaque_HW).convert("L"))).convert("RGBA")
    if image.mode not in MODES:
        raise ValueError(f"its pixels are of mode {image.mode}, whose range is not known")
    transparent = image.mode in TRANSPARENT or "transparency" in image.info
    mode = "RGBA" if transparent else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() always copies


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(40)
    if not head:
        return "it is empty"
    page = " (a web page saved in its place)" if head.lstrip()[:1] == b"<" else ""
    return f"it begins with {head!r}{page}, as no whole file of {', '.join(FORMATS)} does"
