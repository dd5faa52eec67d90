"""The rows' pictures as a report shows them: whole under expert maps, cut out around a patch."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from llava_compete.data import ImageFolder

STRIP = (3, 2)  # patches of an expert side by side, one below the other
TILE, GAP = 132, 4  # pixels of a patch with its surroundings, and between two
MAP_SIDE = 224  # pixels of a picture that expert maps are laid over


class Pictures:
    """The rows' pictures as the model sees them: padded to a square, opened once."""

    def __init__(self, folder: Path, grid: int, background: tuple[int, int, int]) -> None:
        self.folder = folder
        self.grid = grid
        self.background = background
        self._square: dict[str, Image.Image] = {}

    def square(self, file: str) -> Image.Image:
        """The picture, padded, at MAP_SIDE or, if that is more, 16 pixels a patch."""
        if file not in self._square:
            wanted = max(MAP_SIDE, 16 * self.grid)
            image = ImageFolder(self.folder).open(file, file, wanted)
            side = max(image.size)
            padded = Image.new("RGB", (side, side), self.background)
            padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            self._square[file] = padded.resize((wanted, wanted), Image.Resampling.LANCZOS)
        return self._square[file]

    def patch(self, file: str, patch: int, colour: str) -> Image.Image:
        """The patch framed in ``colour``, with what stands around it, TILE pixels wide."""
        picture = self.square(file)
        window = min(self.grid, max(3, self.grid // 3))  # patches of the cut-out's side
        row, column = divmod(patch, self.grid)
        top = min(max(row - window // 2, 0), self.grid - window)
        left = min(max(column - window // 2, 0), self.grid - window)
        unit = picture.width / self.grid
        box = (left * unit, top * unit, (left + window) * unit, (top + window) * unit)
        tile = picture.resize((TILE, TILE), Image.Resampling.LANCZOS, box=box)
        cell = TILE / window
        x, y = (column - left) * cell, (row - top) * cell
        frame = (round(x), round(y), round(x + cell) - 1, round(y + cell) - 1)
        ImageDraw.Draw(tile).rectangle(frame, outline=colour, width=4)
        return tile

    def strip(self, patches: Sequence[Mapping[str, Any]], colour: str) -> bytes:
        """The patches as one JPEG file, STRIP of them at most."""
        columns, rows = STRIP
        shown = patches[: columns * rows]
        rows = -(-len(shown) // columns)
        size = (columns * (TILE + GAP) - GAP, rows * (TILE + GAP) - GAP)
        sheet = Image.new("RGB", size, "white")
        for place, found in enumerate(shown):
            row, column = divmod(place, columns)
            tile = self.patch(found["file"], found["patch"], colour)
            sheet.paste(tile, (column * (TILE + GAP), row * (TILE + GAP)))
        file = BytesIO()
        sheet.save(file, format="JPEG", quality=88)
        return file.getvalue()
