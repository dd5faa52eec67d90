"""Names from captions, kinds from folders, and what is stored of a tree of stamps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_prep import captions, pictures, pypi_pictures
from data_prep.pictures import Picture


def add_stamp(
    root: Path, place: str, caption: str | None, colour: int = 0, size: tuple[int, int] = (64, 48)
) -> None:
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, (colour, 90, 30, 255)).save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Etwas.\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A red apple.", "red apple"),
        ("An owl.", "owl"),
        ("A \u201cGranny Smith\u201d apple.", "granny smith apple"),
        ("A plumber\u2019s wrench.", "plumber's wrench"),
        ("A ginger 'root'.", "ginger root"),
        ("A peacock (a male peafowl).", "peacock"),
        ("A dumper. It carries its load in the front.", "dumper"),
        ("A wheelie bin! Give me your trash!", "wheelie bin"),
        ("Eat your broccoli!", None),
        ("Two wild boars.", None),
        ("A hoverfly resembles a honeybee drone.", None),
        ("A football used in Australian Rules by men.", None),
        ("A ripe, red tomato!", None),
        ("", None),
    ],
)
def test_a_caption_gives_a_short_noun_or_nothing(caption, name):
    assert captions.name_of(caption) == name


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("european bear", "a european bear"),
        ("hippopotamus", "a hippopotamus"),
        ("uk post box", "a uk post box"),
        ("umbrella", "an umbrella"),
    ],
)
def test_the_article_follows_the_sound(name, phrase):
    assert captions.with_article(name) == phrase


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("red apple", "green apple", True),
        ("rose", "yellow flower", True),
        ("doe", "deer", True),
        ("bunch of grapes", "glass of water", False),
        ("owl", "red apple", False),
    ],
)
def test_names_that_could_both_be_true_are_known_in_both_directions(name, other, same):
    assert captions.may_be_same(name, other) is same
    assert captions.may_be_same(other, name) is same


def test_kinds_come_from_the_longest_listed_folder():
    assert pictures.kind_of(Path("household/key.png")) == "houseware"
    assert pictures.kind_of(Path("household/tools/saw.png")) == "tool"
    assert pictures.kind_of(Path("symbols/math/plus.png")) is None
    assert pictures.kind_of(Path("food/fruit/cartoon/apple.png")) is None


def test_stamps_without_caption_name_or_kind_are_left_out(tmp_path):
    add_stamp(tmp_path, "food/fruit/pear.png", "A yellow pear.")
    add_stamp(tmp_path, "food/fruit/pear_mirror.png", None)
    add_stamp(tmp_path, "food/broccoli.png", "Eat your broccoli!")
    add_stamp(tmp_path, "food/cartoon/apple.png", "An apple.")
    add_stamp(tmp_path, "symbols/k.png", "A letter.")
    found = pictures.read_stamps(tmp_path)
    assert found == [Picture(str(tmp_path / "food/fruit/pear.png"), "yellow pear", "food")]


def test_a_tree_without_stamps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no captioned stamps"):
        pictures.read_stamps(tmp_path)


def test_what_is_transparent_becomes_white(tmp_path):
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.putpixel((3, 4), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    flat = pictures.on_white(tmp_path / "a.png")
    assert (flat.mode, flat.size) == ("RGB", (40, 30))
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((3, 4)) == (10, 20, 30)


def test_the_longest_side_is_bounded_and_the_shape_kept(tmp_path):
    Image.new("RGB", (1280, 640)).save(tmp_path / "a.png")
    assert pictures.on_white(tmp_path / "a.png").size == (320, 160)


def stored(root: Path, tmp_path: Path) -> list[Picture]:
    return pictures.store(pictures.read_stamps(root), root, tmp_path / pictures.FOLDER)


def test_duplicates_blots_and_small_kinds_are_not_stored(tmp_path):
    root = tmp_path / "stamps"
    for i in range(pictures.SMALLEST_KIND):
        add_stamp(root, f"animals/Animal{i}.png", f"A beast{i}.", colour=i)
    for i in range(pictures.SMALLEST_KIND - 1):
        add_stamp(root, f"vehicles/car{i}.png", f"A car{i}.", colour=50 + i)
    add_stamp(root, "animals/twin.png", "A twin.", colour=0)
    add_stamp(root, "animals/blot.png", "A blot.", colour=99, size=(64, 8))
    kept = stored(root, tmp_path)
    assert Counter(p.kind for p in kept) == {"animal": pictures.SMALLEST_KIND}
    assert {p.name for p in kept} == {f"beast{i}" for i in range(pictures.SMALLEST_KIND)}


def test_stored_pictures_are_loaded_with_paths_below_the_root(tmp_path):
    root = tmp_path / "stamps"
    for i in range(pictures.SMALLEST_KIND):
        add_stamp(root, f"animals/birds/Bird{i}.png", f"A bird{i}.", colour=i)
    stored(root, tmp_path)
    loaded = pictures.load(tmp_path)
    assert loaded[0] == Picture("pictures/animals-birds-bird0.png", "bird0", "animal")
    for picture in loaded:
        with Image.open(tmp_path / picture.path) as image:
            assert image.mode == "RGB"


def test_two_pictures_never_share_a_file(tmp_path):
    root = tmp_path / "stamps"
    for i in range(pictures.SMALLEST_KIND):
        add_stamp(root, f"animals/animal{i}.png", f"A beast{i}.", colour=i)
    add_stamp(root, "animals/a/b.png", "A crow.", colour=200)
    add_stamp(root, "animals/a-b.png", "A lark.", colour=201)
    with pytest.raises(ValueError, match=r"would be stored as animals-a-b\.png"):
        stored(root, tmp_path)


def test_every_kind_of_the_pypi_set_is_large_enough_and_each_name_short():
    rows = pypi_pictures.table().values()
    counts = Counter(kind for _, kind in rows)
    assert min(counts.values()) >= pictures.SMALLEST_KIND
    assert all(len(name.split()) < captions.MAX_WORDS for name, _ in rows)
    assert counts["card"] == 52
