"""Pictures of no meaning whose files are never the same twice."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

QUALITY = 90
Size = tuple[int, int]


class Painter:
    """Bytes of picture files; the n-th picture of a seed is always the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.number = 0

    def jpeg(self, size: Size = (40, 30), mode: str = "RGB", **options: object) -> bytes:
        """As hard to decode as a photo of its size: soft shapes and some noise."""
        image = self.image(size).convert(mode)
        comment = f"number {self.number}".encode()
        return _saved(image, "JPEG", quality=QUALITY, comment=comment, **options)

    def on_its_side(self) -> bytes:
        """A JPEG that EXIF tells to turn."""
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        return self.jpeg(exif=exif)

    def png(self, mode: str = "RGB") -> bytes:
        return _saved(self.image().convert(mode), "PNG")

    def png_16(self) -> bytes:
        grey = np.asarray(self.image().convert("L")).astype(np.uint16) * 257
        return _saved(Image.fromarray(grey), "PNG")

    def animated(self, kind: str) -> bytes:
        """Two frames of a GIF or WEBP."""
        first, second = self.image(), self.image()
        return _saved(first, kind, save_all=True, append_images=[second])

    def flat(self, size: Size) -> bytes:
        """A PNG of one colour."""
        self.number += 1
        return _saved(Image.new("RGB", size, tuple(self.number.to_bytes(3, "big"))), "PNG")

    def image(self, size: Size = (40, 30)) -> Image.Image:
        self.number += 1
        pixels = np.roll(_photo(size, self.seed), (self.number, 3 * self.number), axis=(0, 1))
        pixels[0, 0] = list(self.number.to_bytes(3, "big"))
        return Image.fromarray(pixels)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@cache
def _photo(size: Size, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shapes = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(shapes).resize(size, Image.Resampling.BICUBIC), dtype=float)
    return np.clip(soft + generator.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()
