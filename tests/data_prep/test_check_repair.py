"""Repairs of pictures: what is made, what is kept, what is refused."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from data_prep.checking import findings
from data_prep.checking.findings import content_format, inspect_picture
from data_prep.checking.repair import MADE, QUALITY, REWRITTEN, Repair, carry_out, repair_of
from llava_compete.data.images import ImageFolder
from tests.data_prep.checked import files_of
from tests.data_prep.painter import Painter


@pytest.fixture
def images(tmp_path):
    return ImageFolder(tmp_path)


@pytest.fixture
def gif():
    return Painter(seed=3).animated("GIF")


def repaired(images: ImageFolder, file: str) -> Repair:
    return carry_out(images, repair_of(inspect_picture(images, file)))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_a_missing_jpeg_is_made_of_the_first_picture_beside_it(images, suffix):
    painter = Painter(seed=3)
    content = painter.png() if suffix == ".png" else painter.animated(suffix[1:].upper())
    beside = images.root / f"a{suffix}"
    beside.write_bytes(content)
    assert repaired(images, "a.jpg") == Repair("a.jpg", MADE, beside.name, "done")
    assert beside.read_bytes() == content
    with Image.open(images.root / "a.jpg") as made:
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (40, 30))
    assert sorted(files_of(images.root)) == sorted([beside.name, "a.jpg"])


def test_the_jpeg_is_the_first_picture_in_the_quality_that_is_said(images, gif):
    (images.root / "a.gif").write_bytes(gif)
    repaired(images, "a.jpg")
    with Image.open(images.root / "a.gif") as first:
        first.convert("RGB").save(images.root / "b.jpg", quality=QUALITY)
    assert (images.root / "a.jpg").read_bytes() == (images.root / "b.jpg").read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.jpeg", "a.b.jpg"])
def test_other_content_is_kept_under_its_own_extension(images, gif, name):
    (images.root / name).write_bytes(gif)
    beside = str((images.root / name).with_suffix(".gif").name)
    assert repaired(images, name) == Repair(name, REWRITTEN, beside, "done")
    assert (images.root / beside).read_bytes() == gif
    assert content_format(images.root / name) == "JPEG"
    assert inspect_picture(images, name).kind == ""


def test_a_file_that_is_in_the_way_is_not_written_over(images, gif):
    (images.root / "a.jpg").write_bytes(gif)
    (images.root / "a.gif").write_bytes(other := Painter(seed=4).animated("GIF"))
    refused = repaired(images, "a.jpg")
    assert refused.status == "refused"
    assert "a.gif exists and holds something else" in refused.message
    assert files_of(images.root) == {"a.jpg": gif, "a.gif": other}


def test_the_same_content_that_is_there_already_is_no_hindrance(images, gif):
    (images.root / "a.jpg").write_bytes(gif)
    (images.root / "a.gif").write_bytes(gif)
    assert repaired(images, "a.jpg").status == "done"
    assert (images.root / "a.gif").read_bytes() == gif


def test_two_names_that_would_keep_different_content_in_one_file(images, gif):
    (images.root / "a.jpg").write_bytes(gif)
    (images.root / "a.jpeg").write_bytes(other := Painter(seed=4).animated("GIF"))
    assert repaired(images, "a.jpg").status == "done"
    assert repaired(images, "a.jpeg").status == "refused"
    assert (images.root / "a.gif").read_bytes() == gif
    assert (images.root / "a.jpeg").read_bytes() == other


def test_a_file_that_came_since_it_was_missing_is_not_written_over(images, gif):
    (images.root / "a.gif").write_bytes(gif)
    repair = repair_of(inspect_picture(images, "a.jpg"))
    (images.root / "a.jpg").write_bytes(b"not a picture")
    assert carry_out(images, repair).status == "refused"
    assert (images.root / "a.jpg").read_bytes() == b"not a picture"


def test_a_folder_that_may_not_be_written_to_is_refused(images, gif, monkeypatch):
    def link(source, target):
        raise PermissionError(f"{target} may not be written")

    (images.root / "a.gif").write_bytes(gif)
    monkeypatch.setattr(os, "link", link)
    refused = repaired(images, "a.jpg")
    assert (refused.status, refused.message) == (
        "refused",
        f"{images.root / 'a.jpg'} may not be written",
    )
    assert list(files_of(images.root)) == ["a.gif"]


def test_a_picture_that_no_jpeg_can_hold_is_refused(images):
    (images.root / "a.png").write_bytes(Painter(seed=3).flat((70_000, 1)))
    assert repaired(images, "a.jpg").status == "refused"
    assert list(files_of(images.root)) == ["a.png"]


def test_what_is_done_is_done_again_without_a_change(images, gif):
    (images.root / "a.jpg").write_bytes(gif)
    repair = repair_of(inspect_picture(images, "a.jpg"))
    assert carry_out(images, repair).status == "done"
    before = files_of(images.root)
    assert carry_out(images, repair).status == "done"
    assert files_of(images.root) == before


# What is found about names and contents.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", ""),
        ("a.JPEG", ""),
        ("a.jfif", ""),
        ("a", ""),
        ("a.unknown", ""),
        ("a.png", findings.WRONG_EXTENSION),
        ("a.gif", findings.WRONG_EXTENSION),
    ],
)
def test_a_jpeg_under_other_names(images, name, kind):
    (images.root / name).write_bytes(Painter(seed=3).jpeg())
    found = inspect_picture(images, name)
    assert (found.kind, found.beside) == (kind, "")


@pytest.mark.parametrize("name", ["a.jpg", "a.mpo"])
def test_a_jpeg_of_several_pictures_is_a_jpeg(images, name):
    first, second = (Painter(seed).image() for seed in (3, 4))
    first.save(images.root / name, format="MPO", save_all=True, append_images=[second])
    assert inspect_picture(images, name).kind == ""


@pytest.mark.parametrize(
    "file", ["x" * 300 + ".jpg", "a/../b.jpg", "a\0b.jpg", "", "/", ".", "a//"]
)
def test_any_name_is_found_or_refused(images, file):
    assert inspect_picture(images, file).kind in (
        findings.MISSING,
        findings.OUTSIDE,
        findings.BROKEN,
    )
