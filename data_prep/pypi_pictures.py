"""Named pictures out of three PyPI wheels, for machines without apt.

Kenney's CC0 sprites (arcade), a few photos of scikit-image and of ImageNet (foolbox).
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from data_prep import assets, pictures
from data_prep.pictures import Picture

ARCADE = "arcade/resources/assets/images"
WHEELS = {  # requirement -> SHA-256; scikit-image differs by platform, so its files are checked
    "arcade==3.3.3": "25f4e0e5b8bcbe7a7d087c0a23b19e9f423b0c70ec00945c8712c9a3e541ebd2",
    "foolbox==3.3.4": "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "scikit-image==0.26.0": None,
}
SKIMAGE_SHA256 = {
    "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "skimage/data/motorcycle_left.png": (
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
    ),
    "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
SUITS = ("Clubs", "Diamonds", "Hearts", "Spades")
RANKS = {
    "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight",
    "9": "nine", "10": "ten", "J": "jack", "Q": "queen", "K": "king", "A": "ace",
}  # fmt: skip
CHARACTERS = {
    "female_adventurer/femaleAdventurer": "female adventurer",
    "female_person/femalePerson": "female person",
    "male_adventurer/maleAdventurer": "male adventurer",
    "male_person/malePerson": "male person",
    "robot/robot": "robot",
    "zombie/zombie": "zombie",
}
COLOURED = {  # file -> thing, one for each colour
    "items/coin{}.png": ("Bronze Gold Silver", "coin", "item"),
    "items/flag{}1.png": ("Green Red Yellow", "flag", "item"),
    "items/flag{}2.png": ("Green Red Yellow", "flag", "item"),
    "items/gem{}.png": ("Blue Green Red Yellow", "gem", "item"),
    "items/key{}.png": ("Blue Green Red Yellow", "key", "item"),
    "enemies/fish{}.png": ("Green Pink", "fish", "animal"),
    "enemies/worm{}.png": ("Green Pink", "worm", "animal"),
    "topdown_tanks/tank_{}.png": ("blue dark green red sand", "tank", "vehicle"),
    "space_shooter/playerShip1_{}.png": ("blue green orange", "spaceship", "vehicle"),
}
OTHERS = {
    f"{ARCADE}/enemies/bee.png": ("bee", "animal"),
    f"{ARCADE}/enemies/fly.png": ("fly", "animal"),
    f"{ARCADE}/enemies/frog.png": ("frog", "animal"),
    f"{ARCADE}/enemies/frog_move.png": ("frog", "animal"),
    f"{ARCADE}/enemies/ladybug.png": ("ladybug", "animal"),
    f"{ARCADE}/enemies/mouse.png": ("mouse", "animal"),
    f"{ARCADE}/miami_synth_parallax/car/car-idle.png": ("car", "vehicle"),
    "foolbox/data/imagenet_00_243.jpg": ("bull mastiff", "animal"),
    "foolbox/data/imagenet_06_609.jpg": ("jeep", "vehicle"),
    "foolbox/data/imagenet_07_609.jpg": ("jeep", "vehicle"),
    "foolbox/data/imagenet_16_251.jpg": ("dalmatian", "animal"),
    "foolbox/data/imagenet_17_22.jpg": ("bald eagle", "animal"),
    "foolbox/data/imagenet_18_317.jpg": ("leafhopper", "animal"),
    "foolbox/data/imagenet_19_305.jpg": ("dung beetle", "animal"),
    "skimage/data/chelsea.png": ("cat", "animal"),
    "skimage/data/motorcycle_left.png": ("motorcycle", "vehicle"),
    "skimage/data/rocket.jpg": ("rocket", "vehicle"),
}


def table() -> dict[str, tuple[str, str]]:
    """Path inside its wheel -> (name, kind) of every picture of the set."""
    rows = dict(OTHERS)
    for suit in SUITS:
        for rank, word in RANKS.items():
            path = f"{ARCADE}/cards/card{suit}{rank}.png"
            rows[path] = (f"{word} of {suit.lower()}", "card")
    for stem, name in CHARACTERS.items():
        for pose in ("idle", "jump", "fall"):
            rows[f"{ARCADE}/animated_characters/{stem}_{pose}.png"] = (name, "character")
    for pattern, (colours, thing, kind) in COLOURED.items():
        for colour in colours.split():
            path = f"{ARCADE}/{pattern.format(colour)}"
            rows[path] = (f"{colour.lower()} {thing}", kind)
    return rows


def read_wheels(work: Path) -> tuple[Path, list[Picture]]:
    """Download the wheels and take the pictures of the table out of them, in its order by path."""
    rows, base = table(), work / "files"
    for requirement, sha256 in WHEELS.items():
        wheel = assets.download_wheel(requirement, work)
        if sha256 is not None:
            assets.check_sha256(wheel, sha256, requirement)
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(rows.keys() & set(archive.namelist())):
                archive.extract(member, base)
    missing = [path for path in rows if not (base / path).exists()]
    if missing:
        raise ValueError(f"the wheels {', '.join(WHEELS)} do not hold {missing}: other releases?")
    for path, sha256 in SKIMAGE_SHA256.items():
        assets.check_sha256(base / path, sha256, "scikit-image")
    return base, [Picture(str(base / path), *rows[path]) for path in sorted(rows)]


def _sha256_of_all() -> str:
    sums = [sha256 for sha256 in WHEELS.values() if sha256] + list(SKIMAGE_SHA256.values())
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


PYPI = pictures.asset(f"PyPI {' '.join(WHEELS)}", _sha256_of_all(), read_wheels)
