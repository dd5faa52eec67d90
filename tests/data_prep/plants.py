"""What is planted in a made-up data set: a function a plant, which says what a check must find.

Harmless plants are there so that nothing is found in them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data_prep.painter import Painter, bomb

Row = dict[str, Any]
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


class Garden:
    """The rows and pictures that are planted in, and what was planted."""

    def __init__(self, rows: list[Row], root: Path, painter: Painter, seed: int) -> None:
        self.rows = rows
        self.root = root
        self.painter = painter
        self.outside = root.parent / "outside"  # of what rows may name
        self.outside.mkdir()
        (self.outside / "secret.jpg").write_bytes(painter.jpeg())
        self.faults: set[tuple[int, str, str]] = set()
        self.notes: set[tuple[str, Any]] = set()
        self.repairs: set[tuple[str, str, str]] = set()
        images = [row.get("image", "coco") for row in rows]
        self._free = [n for n, image in enumerate(images) if not image.startswith("coco")]
        random.Random(seed).shuffle(self._free)
        self._coco = sorted({image for image in images if image.startswith("coco/")})

    def take(self) -> int:
        """A row with a picture of its own that nothing was planted in yet."""
        return self._free.pop()

    def take_two(self) -> tuple[int, int]:
        """Two of them, in order."""
        one, two = sorted((self.take(), self.take()))
        return one, two

    def take_shared(self) -> str:
        """A picture of several rows."""
        return self._coco.pop()

    def fault(self, number: int, kind: str, file: str = "") -> None:
        self.faults.add((number, kind, file))

    def put(self, number: int, content: bytes, suffix: str = ".jpg") -> str:
        """Make ``content`` the row's picture, by a name that ends in ``suffix``; gives the name."""
        row = self.rows[number]
        (self.root / row["image"]).unlink()
        row["image"] = str(Path(row["image"]).with_suffix(suffix))
        (self.root / row["image"]).write_bytes(content)
        return row["image"]


def turn(place: int, speaker: str, text: Any) -> Callable[[Row], None]:
    """Puts another turn at ``place`` of a row."""

    def change(row: Row) -> None:
        row["conversations"][place] = {"from": speaker, "value": text}

    return change


def key(name: str, value: Any) -> Callable[[Row], None]:
    """Sets a key of a row."""
    return lambda row: row.update({name: value})


def swap_roles(row: Row) -> None:
    turns = row["conversations"]
    turns[0], turns[1] = turns[1], turns[0]


def without_id(row: Row) -> None:
    del row["id"]


# What is done to a row, and the kind of fault it then has.
REFUSED_ROWS: list[tuple[Callable[[Row], None], str]] = [
    (swap_roles, "roles"),
    (turn(1, "human", "And then?"), "roles"),
    (turn(0, "gpt", "A box."), "roles"),
    (lambda row: row["conversations"].pop(), "roles"),
    (turn(1, "system", "Be brief."), "roles"),
    (turn(1, "gpt", ""), "empty_text"),
    (turn(1, "gpt", " \n"), "empty_text"),
    (turn(0, "human", ""), "empty_text"),
    (lambda row: row["conversations"][0].update({"from": "gpt"}), "image_in_answer"),
    (turn(1, "gpt", "It shows <image>."), "image_in_answer"),
    (turn(0, "human", "What is it?"), "image_count"),
    (turn(0, "human", "<image>\n<image>\nWhat are they?"), "image_count"),
    (turn(1, "gpt", 7), "malformed_row"),
    (turn(1, "robot", "A box."), "malformed_row"),
    (turn(1, "gpt", None), "malformed_row"),
    (lambda row: row["conversations"].insert(0, "What is it?"), "malformed_row"),
    (key("conversations", []), "malformed_row"),
    (key("conversations", "What is it?"), "malformed_row"),
    (lambda row: row.pop("conversations") and None, "malformed_row"),
    (key("id", ["7"]), "malformed_row"),
    (key("image", 7), "malformed_row"),
    (key("image", ""), "malformed_row"),
    (lambda row: row.update(length="12", length_by="0123456789abcdef"), "malformed_row"),
]

# What is done to a row that stays good.
HARMLESS_ROWS: list[Callable[[Row], None]] = [
    turn(0, "human", "What is it?\n<image>"),
    lambda row: row["conversations"].insert(0, {"from": "system", "value": "Be brief."}),
    key("licence", "unknown"),
    key("source", "mine"),
    without_id,
]

# A picture that is there and cannot be had: its content and the end of its name.
BROKEN_PICTURES: list[tuple[Callable[[Painter], bytes], str]] = [
    (lambda painter: painter.jpeg()[:-300], ".jpg"),
    (lambda painter: painter.jpeg()[:200], ".jpg"),
    (lambda painter: painter.png()[:-300], ".png"),
    (lambda painter: b"", ".jpg"),
    (lambda painter: HTML, ".jpg"),
    (lambda painter: bomb(), ".png"),
]

HARMLESS_PICTURES: list[tuple[Callable[[Painter], bytes], str]] = [
    (lambda painter: painter.jpeg(mode="CMYK"), ".jpg"),
    (lambda painter: painter.jpeg(mode="L"), ".JPG"),
    (lambda painter: painter.jpeg(progressive=True), ".jpeg"),
    (Painter.on_its_side, ".jpg"),
    (Painter.png_16, ".png"),
    (lambda painter: painter.png("P"), ".png"),
    (lambda painter: painter.png("RGBA"), ".png"),
    (lambda painter: painter.animated("GIF"), ".gif"),
    (lambda painter: painter.animated("WEBP"), ".webp"),
    (lambda painter: painter.flat((1, 1)), ".png"),
    (lambda painter: painter.flat((20_000, 3)), ".png"),
    (lambda painter: painter.jpeg(), ""),
]

# What a picture named .jpg really is, and the end of the name it should have.
DISGUISED_PICTURES: list[tuple[Callable[[Painter], bytes], str]] = [
    (lambda painter: painter.animated("GIF"), ".gif"),
    (Painter.png, ".png"),
    (lambda painter: painter.animated("WEBP"), ".webp"),
]


def plant_all(garden: Garden) -> None:
    """Every plant once."""
    rows = garden.rows
    for change, kind in REFUSED_ROWS:
        change(rows[number := garden.take()])
        garden.fault(number, kind)
    for harmless in HARMLESS_ROWS:
        harmless(rows[garden.take()])
    for content, suffix in BROKEN_PICTURES:
        number = garden.take()
        garden.fault(number, "broken_image", garden.put(number, content(garden.painter), suffix))
    for content, suffix in HARMLESS_PICTURES:
        garden.put(garden.take(), content(garden.painter), suffix)
    for content, suffix in DISGUISED_PICTURES:
        plant_disguised(garden, content(garden.painter), suffix)
    for plant in (plant_missing, plant_shared, plant_outside, plant_twice, plant_several):
        plant(garden)


def plant_disguised(garden: Garden, content: bytes, suffix: str) -> None:
    """A picture under a wrong extension, and one that only stands beside the name in its row."""
    file = garden.put(garden.take(), content)
    garden.notes.add(("wrong_extension", file))
    garden.repairs.add((file, "rewritten_content_kept_beside", beside(file, suffix)))
    number = garden.take()
    file = garden.rows[number]["image"]
    (garden.root / file).rename(garden.root / beside(file, suffix))
    (garden.root / beside(file, suffix)).write_bytes(content)
    garden.fault(number, "missing_image", file)
    garden.repairs.add((file, "made_from_beside", beside(file, suffix)))


def plant_missing(garden: Garden) -> None:
    """No file; a broken one beside; a folder in its place; content of which no repair is known."""
    number = garden.take()
    file = garden.rows[number]["image"]
    (garden.root / file).unlink()
    garden.fault(number, "missing_image", file)
    number = garden.take()
    file = garden.rows[number]["image"]
    (garden.root / file).unlink()
    (garden.root / beside(file, ".gif")).touch()
    garden.fault(number, "missing_image", file)
    number = garden.take()
    file = garden.rows[number]["image"]
    (garden.root / file).unlink()
    (garden.root / file).mkdir()
    garden.fault(number, "broken_image", file)
    garden.notes.add(("wrong_extension", garden.put(garden.take(), garden.painter.jpeg(), ".png")))


def plant_shared(garden: Garden) -> None:
    """A cut picture of several rows."""
    file = garden.take_shared()
    (garden.root / file).write_bytes(garden.painter.jpeg()[:-300])
    for number, row in enumerate(garden.rows):
        if row.get("image") == file:
            garden.fault(number, "broken_image", file)


def plant_outside(garden: Garden) -> None:
    """Names and links that lead out of the folder; and a link that stays in it."""
    secret = garden.outside / "secret.jpg"
    link = garden.root / "vg" / "linked"
    link.unlink(missing_ok=True)
    link.symlink_to(garden.outside)
    for name in ("../outside/secret.jpg", "vg/../../outside/secret.jpg", str(secret)):
        garden.rows[number := garden.take()]["image"] = name
        garden.fault(number, "outside_root", name)
    garden.rows[number := garden.take()]["image"] = "vg/linked/secret.jpg"
    garden.fault(number, "outside_root", "vg/linked/secret.jpg")
    number = garden.take()
    file = garden.rows[number]["image"]
    (garden.root / file).unlink()
    (garden.root / file).symlink_to(secret)
    garden.fault(number, "outside_root", file)
    file = garden.rows[garden.take()]["image"]
    (garden.root / file).rename(garden.root / f"{file}.moved")
    (garden.root / file).symlink_to(f"{Path(file).name}.moved")


def plant_twice(garden: Garden) -> None:
    """A row twice; its content under another id, by the same file and by two; an id twice."""
    rows = garden.rows
    one, two = garden.take_two()
    rows[two] = copy.deepcopy(rows[one])
    garden.fault(two, "repeated_row")
    one, two = garden.take_two()
    rows[two] = {**copy.deepcopy(rows[one]), "id": rows[two]["id"]}
    garden.notes.add(("repeated_content", (one, two)))
    one, two = garden.take_two()
    rows[two]["conversations"] = rows[one]["conversations"]
    same_picture(garden, one, two)
    garden.notes.add(("repeated_content", (one, two)))
    same_picture(garden, *garden.take_two())
    one, two = garden.take_two()
    rows[two]["id"] = str(rows[one]["id"])
    garden.notes.add(("repeated_id", (one, two)))


def same_picture(garden: Garden, one: int, two: int) -> None:
    files = (garden.rows[one]["image"], garden.rows[two]["image"])
    (garden.root / files[1]).write_bytes((garden.root / files[0]).read_bytes())
    garden.notes.add(("same_picture", tuple(sorted(files))))


def plant_several(garden: Garden) -> None:
    """Rows of two pictures: both good, the second cut, both the same and missing."""
    good, cut, missing = (garden.take() for _ in range(3))
    for number in (good, cut, missing):
        row = garden.rows[number]
        file = row["image"]
        other = f"{file}.second.jpg"
        (garden.root / other).write_bytes(garden.painter.jpeg())
        row["image"] = [file, other]
        row["conversations"][0]["value"] = "<image>\n<image>\nWhat are they?"
    other = garden.rows[cut]["image"][1]
    (garden.root / other).write_bytes(garden.painter.jpeg()[:-300])
    garden.fault(cut, "broken_image", other)
    file, other = garden.rows[missing]["image"]
    garden.rows[missing]["image"] = [file, file]
    (garden.root / file).unlink()
    garden.fault(missing, "missing_image", file)


def beside(file: str, suffix: str) -> str:
    return str(Path(file).with_suffix(suffix))
