import io
import json
import os
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torch.testing import assert_close
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from eval.pictures import Pictures
from eval.task import Sample
from llava_compete.data import ImageFolder, LlavaDataset
from llava_compete.data.images import FORMATS, MARGIN, MAX_PIXELS, picture_side
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    return ImageFolder(tmp_path)


def smooth(width, height):
    """A picture whose colours all change slowly, so that it survives a JPEG."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(9 * x + 3 * y), np.cos(7 * y), np.sin(5 * (x - y))]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


def largest_difference(one, other):
    assert one.size == other.size
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


def stored(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


# Finding


def test_a_file_is_found_below_the_folder_in_any_depth(tmp_path, folder):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("0.png", "a/1.png", "a/b/2.png", "a/b/caf\u00e9 x.png"):
        (tmp_path / name).touch()
        assert folder.find(name, "s1") == tmp_path / name
    assert folder.find("./a//b/2.png", "s1").samefile(tmp_path / "a/b/2.png")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gone.png", "does not exist"),
        ("gone/0.png", "does not exist"),
        ("0.png/0.png", "cannot be reached: Not a directory"),
        ("a", "is not a file"),
        ("a/", "is not a file"),
        ("", "is not a file"),
        (".", "is not a file"),
        ("pipe", "is not a file"),
        ("x" * 300, "cannot be reached: File name too long"),
        ("a\0b", "has a NUL character in its name"),
        ("loop", "cannot be reached: Too many levels of symbolic links"),
        ("dangling", "does not exist"),
    ],
)
def test_what_is_no_file_is_refused_by_sample_and_reason(tmp_path, folder, name, fault):
    (tmp_path / "0.png").touch()
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for _ in range(2):  # what is remembered of a folder changes nothing
        with pytest.raises(ValueError, match=rf"^sample s1: image .* {fault}"):
            folder.find(name, "s1")


def test_half_a_character_in_a_name_is_refused(folder):
    with pytest.raises(ValueError, match=r"^sample s1: image .*a\\ud83d"):
        folder.find("a\ud83d", "s1")


def test_a_way_out_of_the_folder_is_refused_however_it_is_named(tmp_path):
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    (root / "0.png").touch()
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    (root / "up").symlink_to("..")
    ways = {
        "../secret.png": "without '..'",
        "a/../0.png": "without '..'",
        "a/..": "is not a file",
        "..": "is not a file",
        str(tmp_path / "secret.png"): "below that folder",
        str(root / "0.png"): "below that folder",
        "link.png": "linked_folders",
        "out/secret.png": "linked_folders",
        "up/secret.png": "linked_folders",
        "out/images/a/../../secret.png": "without '..'",
    }
    folder = ImageFolder(root)
    folder.find("0.png", "s1")
    for _ in range(2):
        for file, fix in ways.items():
            with pytest.raises(ValueError, match=rf"^sample s1: image .*{fix}") as caught:
                folder.find(file, "s1")
            assert ("lies outside the image folder" in str(caught.value)) == (
                fix != "is not a file"
            )


def test_links_within_the_folder_and_the_folder_as_a_link_are_fine(tmp_path):
    root = tmp_path / "real"
    (root / "a").mkdir(parents=True)
    tiny.draw(0).save(root / "a" / "0.png")
    (root / "b").symlink_to("a")
    (root / "1.png").symlink_to("a/0.png")
    (tmp_path / "link").symlink_to(root)
    for way in ("real", "link"):
        for name in ("a/0.png", "b/0.png", "1.png"):
            assert ImageFolder(tmp_path / way).open(name, "s1").size == (20, 12)


def test_links_may_lead_into_linked_folders_and_no_further(tmp_path):
    for name in ("images", "coco", "coco-2017", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    root = tmp_path / "images"
    for name in ("coco", "coco-2017", "other"):
        (root / name).symlink_to(tmp_path / name)
    (tmp_path / "coco" / "1.png").symlink_to(tmp_path / "other" / "0.png")
    folder = ImageFolder(root, [tmp_path / "coco"])
    assert folder.find("coco/0.png", "s1") == root / "coco" / "0.png"
    for file in ("coco/1.png", "other/0.png", "coco-2017/0.png"):
        with pytest.raises(ValueError, match=r"in .*/images|in .*, by a link: .* linked_folders"):
            folder.find(file, "s1")
    ImageFolder(root, [tmp_path / "coco", tmp_path / "other"]).find("coco/1.png", "s1")


def test_a_linked_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"linked_folders: .*gone is not a folder"):
        ImageFolder(tmp_path, [tmp_path / "gone"])


def test_each_folder_is_resolved_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for index in range(10):
        (tmp_path / "a" / f"{index}.png").touch()
    folder = ImageFolder(tmp_path)
    resolved = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or real(path))
    for index in range(10):
        folder.find(f"a/{index}.png", "s1")
    assert resolved == [f"{tmp_path}/a"]


def test_an_image_folder_can_be_pickled(tmp_path, folder):
    tiny.draw(0).save(tmp_path / "a.png")
    folder.open("a.png", "s1")
    assert pickle.loads(pickle.dumps(folder)).open("a.png", "s1").size == (20, 12)


# Damaged files


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
def test_a_file_that_was_cut_is_refused_or_was_whole_already(tmp_path, folder, format_name):
    whole = stored(smooth(48, 32), format=format_name)
    (tmp_path / "a").write_bytes(whole)
    wanted = np.asarray(folder.open("a", "s1"))
    refused = 0
    for length in sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}):
        (tmp_path / "a").write_bytes(whole[:length])
        try:
            assert np.array_equal(
                np.asarray(folder.open("a", "s1", 16 if length % 2 else None)), wanted
            )
        except ValueError as error:
            assert str(error).startswith("sample s1: image ")  # noqa: PT017
            refused += 1
    assert refused >= 39


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}])
@pytest.mark.parametrize("side", [None, 100])
def test_a_truncated_jpeg_is_never_half_a_picture(tmp_path, folder, options, side):
    image = smooth(640, 480).convert(options.pop("mode", "RGB"))
    whole = stored(image, format="JPEG", **options)
    for left in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "a.jpg").write_bytes(whole[: int(left * len(whole))])
        with pytest.raises(
            ValueError, match=r"^sample s1: image .*a.jpg cannot be read: .*truncat"
        ):
            folder.open("a.jpg", "s1", side)
    zeros = bytes(len(whole) // 2)  # as a download that had its room reserved leaves them
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2] + zeros)
    with pytest.raises(ValueError, match=r"^sample s1: image .*a.jpg cannot be read: .*truncat"):
        folder.open("a.jpg", "s1", side)


def test_nothing_is_decoded_while_pillow_would_let_half_pictures_through(
    tmp_path, folder, monkeypatch
):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    tiny.draw(0).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is set, so half a picture would"):
        folder.open("a.png", "s1")


def test_a_picture_broken_inside_is_refused_like_any_unreadable_one(tmp_path, folder):
    """Pillow raises SyntaxError for a PNG whose chunks are damaged."""
    whole = bytearray(stored(tiny.draw(0, (64, 64)), format="PNG"))
    whole[whole.index(b"IDAT") - 1] -= 20  # the next chunk seems to begin within this one
    (tmp_path / "a.png").write_bytes(whole)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(SyntaxError):
        image.load()
    with pytest.raises(ValueError, match=r"sample s1: image .*a.png cannot be read"):
        folder.open("a.png", "s1")


def test_a_png_whose_bytes_were_changed_is_refused(tmp_path, folder):
    whole = stored(smooth(64, 64), format="PNG")
    first, last = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 4
    for place in np.linspace(first, last - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            folder.open("a.png", "s1")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (
            b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>",
            r"it begins with b'<!DOCTYPE html>\\n.*' \(a web page saved in its place\), as no",
        ),
        (b"\n <html>", r"it begins with b'\\n <html>' \(a web page saved in its place\)"),
        (b"no picture", "it begins with b'no picture', as no whole file of JPEG, PNG, .* does"),
        (b"\xff\xd8\xff", r"it begins with b'\\xff\\xd8\\xff', as no whole file of JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ".* as no whole file of JPEG"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_with_what_it_begins_with(
    tmp_path, folder, content, fault
):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=f"^sample s1: image {tmp_path}/a.jpg cannot be read: {fault}.*; fetch it again or",
    ):
        folder.open("a.jpg", "s1")


@pytest.mark.parametrize(("format_name", "options"), [("PNG", {}), ("GIF", {}), ("WEBP", {})])
def test_the_name_of_a_file_does_not_say_what_it_is(tmp_path, folder, format_name, options):
    (tmp_path / "a.jpg").write_bytes(stored(tiny.draw(0), format=format_name, **options))
    assert folder.open("a.jpg", "s1").size == (20, 12)


# Bombs


def png_of(width, height):
    """A PNG of few bytes that says it is so large, and is grey of 1 bit a pixel."""
    import zlib

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("height", "fault"), [(2, "more than"), (3, "could be decompression bomb")]
)
@pytest.mark.parametrize("as_errors", [False, True])
def test_a_decompression_bomb_is_refused_at_pillows_warning_and_at_its_error(
    tmp_path, folder, height, fault, as_errors
):
    (tmp_path / "a.png").write_bytes(png_of(MAX_PIXELS // 2 + 1, height + (height > 2) * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if as_errors else "ignore")
        fault = "decompression bomb" if as_errors else fault
        with pytest.raises(
            ValueError, match=f"^sample s1: image .*a.png cannot be read: .*{fault}"
        ):
            folder.open("a.png", "s1")


def test_the_limit_holds_where_pillow_has_none(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png_of(MAX_PIXELS + 1, 1))
    fault = f"{MAX_PIXELS + 1} x 1 are more than {MAX_PIXELS} pixels"
    with pytest.raises(ValueError, match=f"^sample s1: image .*a.png cannot be read: {fault}"):
        folder.open("a.png", "s1")
    (tmp_path / "a.png").write_bytes(png_of(MAX_PIXELS // 4, 4))
    assert folder.open("a.png", "s1", 16).size[1] == 1


# Modes


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, folder, mode):
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 20, 30])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (4, 4), 0).save(tmp_path / "a.png")
    opened = folder.open("a.png", "s1")
    assert opened.mode == "RGB"
    assert opened.getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_pixels_lie_on_white_shrunk_or_not(tmp_path, folder):
    colours = np.zeros((64, 64, 4), dtype=np.uint8)
    colours[:, 32:] = (200, 0, 0, 128)  # beside black that nothing shows
    Image.fromarray(colours).save(tmp_path / "a.png")
    for side in (None, 2):
        opened = folder.open("a.png", "s1", side)
        assert opened.size == ((64, 64) if side is None else (8, 8))
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((opened.width - 1, 0)) == (227, 127, 127)


def test_a_palette_gives_its_colours(tmp_path, folder):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    opened = folder.open("a.png", "s1")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]


def test_a_palette_may_have_an_alpha_for_each_colour(tmp_path, folder):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    opened = folder.open("a.png", "s1")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "YCbCr", "LAB"])
def test_other_modes_become_rgb(tmp_path, folder, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    assert folder.open("a.tiff", "s1").mode == "RGB"


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, folder, format_name):
    values = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]], dtype=np.uint16)
    image = Image.fromarray(values)
    assert image.convert("L").getpixel((3, 0)) == 255  # what Pillow would make of it
    (tmp_path / "a").write_bytes(stored(image, format=format_name))
    opened = folder.open("a", "s1")
    assert opened.mode == "RGB"
    assert np.asarray(opened)[0, :, 1].tolist() == [0, 0, 1, 0x12, 0x80, 0xFF]


def test_sixteen_bit_grey_may_have_a_transparent_value(tmp_path, folder):
    values = np.array([[0x1234, 0x1235]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0x1235)
    assert np.asarray(folder.open("a.png", "s1"))[0, :, 0].tolist() == [0x12, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_known_range_are_refused(tmp_path, folder, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=f"a.tiff cannot be read: its pixels are of mode {mode},"):
        folder.open("a.tiff", "s1")


@pytest.mark.parametrize("side", [None, 16])
def test_a_cmyk_jpeg_has_the_colours_of_the_picture(tmp_path, folder, side):
    """Its inks are stored inverted; a reader that does not heed that gives a negative."""
    picture = smooth(64, 48)
    whole = stored(picture.convert("CMYK"), format="JPEG", quality=95)
    assert b"Adobe" in whole
    (tmp_path / "a.jpg").write_bytes(whole)
    opened = folder.open("a.jpg", "s1", side)
    assert opened.size == ((64, 48) if side is None else (16, 12))
    assert largest_difference(opened, picture.resize(opened.size, Image.Resampling.BOX)) < 16
    white = stored(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), format="JPEG")
    (tmp_path / "a.jpg").write_bytes(white)
    assert folder.open("a.jpg", "s1").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, folder, format_name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    frames[0].save(
        tmp_path / "a", format=format_name, save_all=True, append_images=frames[1:], **options
    )
    with Image.open(tmp_path / "a") as image:
        assert image.n_frames == 3
    opened = folder.open("a", "s1")
    assert (opened.size, opened.getpixel((1, 1))) == ((8, 6), (255, 0, 0))


def test_of_a_jpeg_with_several_pictures_the_first_is_taken(tmp_path, folder):
    """Cameras write such files, which Pillow calls MPO."""
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    for side, size in ((None, (64, 48)), (16, (16, 12))):
        opened = folder.open("a.jpg", "s1", side)
        assert opened.size == size
        assert largest_difference(opened, Image.new("RGB", size, "red")) < 4


# Upright


@pytest.mark.parametrize("side", [None, 20])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_exif_says(tmp_path, folder, orientation, format_name, side):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").write_bytes(stored(smooth(80, 48), format=format_name, exif=exif, quality=95))
    with Image.open(tmp_path / "a") as image:
        wanted = ImageOps.exif_transpose(image)
        assert wanted.size == ((80, 48) if orientation < 5 else (48, 80))
    opened = folder.open("a", "s1", side)
    if format_name == "JPEG" and side:
        wanted = wanted.resize((wanted.width // 4, wanted.height // 4), Image.Resampling.BOX)
    assert largest_difference(opened, wanted) < 12
    assert largest_difference(ImageOps.exif_transpose(opened), opened) == 0  # not turned twice


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none_changes_nothing(tmp_path, folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(80, 48).save(tmp_path / "a.png", exif=exif)
    assert largest_difference(folder.open("a.png", "s1"), smooth(80, 48)) == 0


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"]
)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:.*EXIF|.*Truncated:UserWarning")
def test_a_picture_with_exif_that_cannot_be_read_is_taken_as_it_stands(
    tmp_path, folder, exif, format_name
):
    plain = stored(smooth(80, 48), format=format_name)
    (tmp_path / "a").write_bytes(stored(smooth(80, 48), format=format_name, exif=exif))
    (tmp_path / "b").write_bytes(plain)
    assert largest_difference(folder.open("a", "s1"), folder.open("b", "s1")) == 0


# Sizes


def processed(image, side, processor=LlavaImageProcessor):
    """Levels of 0 to 255 (3, side, side), as the model sees them before mean and deviation."""
    made = processor(
        do_pad=True,
        size={"height": side, "width": side},
        do_center_crop=False,
        do_normalize=False,
        image_mean=[0.5, 0.4, 0.3],
    )
    return made(image, return_tensors="pt")["pixel_values"][0] * 255


def test_the_side_is_the_square_that_the_processor_resizes_to(processor):
    assert picture_side(processor) == tiny.IMAGE_SIZE
    pixels = processor.image_processor(tiny.draw(0, (70, 30)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (picture_side(processor), picture_side(processor))


def test_a_tower_at_several_scales_needs_no_larger_picture(tmp_path):
    _, processor = tiny.compose_tiny(tmp_path, scales=(1, 3))
    assert picture_side(processor) == tiny.IMAGE_SIZE


@pytest.mark.parametrize(
    "size", [(64, 48), (48, 64), (65, 9), (9, 65), (127, 127), (1, 128), (500, 3)]
)
def test_a_jpeg_is_decoded_as_small_as_its_long_side_allows(tmp_path, folder, size):
    smooth(*size).save(tmp_path / "a.jpg")
    assert folder.open("a.jpg", "s1").size == size
    for side in (8, 16, 32, 33, 63, 64, 65, 1000):
        opened = folder.open("a.jpg", "s1", side)
        long = max(opened.size)
        assert long >= min(side, max(size))
        scale = next(n for n in (8, 4, 2, 1) if n == 1 or max(size) // n >= side)
        if min(size) >= 8:  # thinner ones Pillow leaves whole
            assert long == -(-max(size) // scale)
            assert min(opened.size) == -(-min(size) // scale)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (960, 320)])
def test_the_model_sees_nearly_the_same_of_a_jpeg_decoded_small(tmp_path, folder, size):
    smooth(*size).save(tmp_path / "a.jpg", quality=90)
    small, whole = (folder.open("a.jpg", "s1", side) for side in (112, None))
    assert max(small.size) < max(whole.size) == max(size)
    assert_close(processed(small, 112), processed(whole, 112), rtol=0, atol=8)
    assert (processed(small, 112) - processed(whole, 112)).abs().mean() < 1


def test_pictures_that_are_not_much_too_large_keep_every_pixel(tmp_path, folder):
    picture = smooth(2 * MARGIN * 32 - 1, 100)
    picture.save(tmp_path / "a.png")
    assert largest_difference(folder.open("a.png", "s1", 32), picture) == 0


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (4000, 1), (2999, 50), (1500, 1100)])
def test_a_long_picture_is_shrunk_near_to_what_padding_first_would_give(
    tmp_path, folder, size, format_name
):
    """The reference is the processor on the whole picture, whose padding is a square of 4000."""
    side = 32
    (tmp_path / "a").write_bytes(stored(smooth(*size), format=format_name))
    whole, opened = folder.open("a", "s1"), folder.open("a", "s1", side)
    assert whole.size == size
    assert MARGIN * side <= max(opened.size) < 2 * MARGIN * side or format_name == "JPEG"
    assert side <= max(opened.size) < 2 * MARGIN * side
    difference = (processed(opened, side) - processed(whole, side)).abs()
    assert difference.max() < 36  # where the border moves by an eighth of a pixel
    assert difference.mean() < 2


def test_a_picture_of_20000_x_3_takes_little_memory(tmp_path, folder):
    smooth(20000, 3).save(tmp_path / "a.png")
    opened = folder.open("a.png", "s1", 336)
    assert max(opened.size) ** 2 * 3 < 25e6  # bytes of the padded square; 1.2e9 of the whole one
    assert processed(opened, 336).shape == (3, 336, 336)


@pytest.mark.parametrize("side", [None, 16])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 1), (3, 50), (50, 3)])
def test_pictures_as_small_as_a_colour_come_through(tmp_path, folder, size, side):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    opened = folder.open("a.png", "s1", side)
    assert opened.size == size
    pixels = processed(opened, 16)
    assert pixels.shape == (3, 16, 16)
    if size[0] == size[1]:
        wanted = torch.tensor([10.0, 200.0, 30.0]).view(3, 1, 1).expand(3, 16, 16)
        assert_close(pixels, wanted)


def test_training_and_evaluation_see_the_same_pixels(tmp_path, processor):
    smooth(640, 480).save(tmp_path / "a.jpg")
    row = tiny.say("<image>a", "b", image="a.jpg")
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    trained = LlavaDataset(tmp_path / "rows.json", tmp_path, processor)[0]["pixel_values"]
    sample = Sample("a", "a", ("b",), images=(tmp_path / "a.jpg",))
    asked = Pictures(None, processor).inputs([sample], shared=False)["pixel_values"]
    assert torch.equal(trained, asked)
