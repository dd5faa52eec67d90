import pytest
from PIL import Image

from llava_compete.data import ImageFolder
from tests import tiny


def test_a_missing_and_an_unreadable_image_are_refused_by_sample_and_path(tmp_path):
    with pytest.raises(ValueError, match=r"sample s1: image .*gone.png does not exist"):
        ImageFolder(tmp_path).open("gone.png", "s1")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"sample s1: image .*text.png cannot be read"):
        ImageFolder(tmp_path).open("text.png", "s1")
    tiny.draw(0, (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"sample s1: image .*cut.png cannot be read"):
        ImageFolder(tmp_path).open("cut.png", "s1")


def test_a_picture_broken_inside_is_refused_like_any_unreadable_one(tmp_path):
    """Pillow raises SyntaxError for a PNG whose chunks are damaged."""
    tiny.draw(0, (64, 64)).save(tmp_path / "a.png")
    whole = bytearray((tmp_path / "a.png").read_bytes())
    length = whole.index(b"IDAT") - 1
    whole[length] -= 20  # the next chunk seems to begin within this one
    (tmp_path / "a.png").write_bytes(whole)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(SyntaxError):
        image.load()
    with pytest.raises(ValueError, match=r"sample s1: image .*a.png cannot be read"):
        ImageFolder(tmp_path).open("a.png", "s1")


def test_a_picture_too_large_to_be_one_is_refused_by_sample(tmp_path, monkeypatch):
    tiny.draw(0).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"sample s1: image .*a.png cannot be read"):
        ImageFolder(tmp_path).open("a.png", "s1")


def test_an_image_outside_the_folder_is_refused_however_it_is_named(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    tiny.draw(0).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for file in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(ValueError, match=r"sample s1: image .* lies outside the image folder"):
            ImageFolder(root).open(file, "s1")


def test_an_image_folder_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    tiny.draw(0).save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert ImageFolder(tmp_path / "link").open("a.png", "s1").size == (20, 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 20, 30])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (4, 4), 0).save(tmp_path / "a.png")
    opened = ImageFolder(tmp_path).open("a.png", "s1")
    assert opened.mode == "RGB"
    assert opened.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    assert ImageFolder(tmp_path).open("a.tiff", "s1").mode == "RGB"
