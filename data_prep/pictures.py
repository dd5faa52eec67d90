"""Pictures with a name and a kind, from the Tux Paint stamps or from PyPI packages.

A stamp is a PNG, mostly a photo cut out of its background, beside a `.txt` whose first line is a
true English caption; its folder says what kind of thing it is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_prep import assets, captions

FOLDER = "pictures"
INDEX = "index.json"  # inside the folder: which picture shows what
RULES = 1  # raise it when the choice or the look of the pictures changes: caches are then rebuilt
LONGEST_SIDE = 320
SHORTEST_SIDE = 24  # a stamp smaller than this is a blot on a white page
SMALLEST_KIND = 10

# Folder of the stamps -> kind; the longest path wins. Folders not listed hold no good kind
# (jokes, signs, drawings, too few pictures).
KINDS = {
    "animals": "animal",
    "clothes": "clothing",
    "food": "food",
    "hobbies/music": "instrument",
    "household": "houseware",
    "household/arttools": "tool",
    "household/dishes/utensils": "tool",
    "household/tools": "tool",
    "plants": "plant",
    "vehicles": "vehicle",
}
SKIPPED_FOLDERS = {"cartoon", "toys", "plastic", "mushrooms"}
# Stamps whose folder or caption is not literally true of them.
SKIPPED_STAMPS = {
    "clothes/button.png",
    "clothes/clothespin_new.png",
    "clothes/clothespin_old.png",
    "household/rubberduck.png",
    "plants/trees/rambutan.png",
    "vehicles/7spoke256.png",
    "vehicles/wheel_tractor.png",
}


@dataclass(frozen=True)
class Picture:
    """A picture file, the short name of what it shows, and the one-word kind of thing that is."""

    path: str
    name: str
    kind: str


def read_stamps(stamps: Path) -> list[Picture]:
    """The stamps that have a usable name and a kind, in the order of their paths."""
    found = []
    for file in sorted(stamps.rglob("*.png")):
        place = file.relative_to(stamps)
        kind, caption_file = kind_of(place), file.with_suffix(".txt")
        if kind is None or not caption_file.exists():
            continue
        lines = caption_file.read_text(encoding="utf-8").splitlines()
        name = captions.name_of(lines[0]) if lines else None
        if name is not None:
            found.append(Picture(str(file), name, kind))
    if not found:
        raise ValueError(
            f"{stamps} holds no captioned stamps: expected PNG files beside .txt files"
        )
    return found


def kind_of(place: Path) -> str | None:
    """The kind of a stamp by its path inside the stamps folder; None if it is left out."""
    if SKIPPED_FOLDERS.intersection(place.parts) or place.as_posix() in SKIPPED_STAMPS:
        return None
    for folder in place.parents:  # from the inside out, so the longest listed path comes first
        if folder.as_posix() in KINDS:
            return KINDS[folder.as_posix()]
    return None


def on_white(file: Path) -> Image.Image:
    """The picture in RGB on a white ground, at most 320 pixels long; never enlarged."""
    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    flat = ground.convert("RGB")
    flat.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return flat


def store(pictures: Sequence[Picture], base: Path, target: Path) -> list[Picture]:
    """Write the pictures as PNG files to ``target`` with an index; give them with file names.

    Left out: exact duplicates (by pixels), tiny pictures, and kinds with fewer than ten pictures.
    """
    kept: list[tuple[Picture, Image.Image]] = []
    seen: set[str] = set()
    for picture in tqdm(pictures, desc="pictures", disable=None):
        image = on_white(Path(picture.path))
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        if digest in seen or min(image.size) < SHORTEST_SIDE:
            continue
        seen.add(digest)
        stem = Path(picture.path).relative_to(base).with_suffix("").as_posix()
        file_name = stem.replace("/", "-").lower() + ".png"
        kept.append((replace(picture, path=file_name), image))
    counts = Counter(picture.kind for picture, _ in kept)
    kept = [(picture, image) for picture, image in kept if counts[picture.kind] >= SMALLEST_KIND]
    target.mkdir(parents=True)
    for picture, image in kept:
        file = target / picture.path
        if file.exists():
            raise ValueError(f"two pictures would be stored as {file.name}: rename one source")
        image.save(file)
    chosen = [picture for picture, _ in kept]
    (target / INDEX).write_text(json.dumps([asdict(p) for p in chosen], indent=1) + "\n")
    return chosen


def load(root: Path) -> list[Picture]:
    """The stored pictures, with paths relative to ``root``."""
    rows = json.loads((root / FOLDER / INDEX).read_text())
    return [
        Picture(path=f"{FOLDER}/{row['path']}", name=row["name"], kind=row["kind"]) for row in rows
    ]


def asset(
    source: str, sha256: str, read: Callable[[Path], tuple[Path, list[Picture]]]
) -> assets.Asset:
    """The picture folder as an asset; ``read(work)`` fetches and gives (base folder, pictures)."""

    def build(work: Path, target: Path) -> None:
        base, found = read(work)
        store(found, base, target)

    return assets.Asset(FOLDER, f"{source}, rules {RULES}", sha256, build)


def _read_stamps(work: Path) -> tuple[Path, list[Picture]]:
    stamps = assets.download_stamps(work)
    return stamps, read_stamps(stamps)


STAMPS = asset(f"Debian {assets.STAMPS_PACKAGE}", assets.STAMPS_SHA256, _read_stamps)
