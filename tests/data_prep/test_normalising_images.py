"""Names of files, data URLs and bytes: what a row says of its pictures."""

import base64
import hashlib
import io

import pytest

from data_prep.normalising import images
from data_prep.normalising.faults import RowError
from tests import tiny


def png(seed=0, form="PNG"):
    content = io.BytesIO()
    tiny.draw(seed).save(content, form)
    return content.getvalue()


def place(folder=None):
    return images.Place(folder, "set")


@pytest.mark.parametrize("name", ["a/1.png", "./1.png", "a b/\u00fc.png", "..a/1.png"])
def test_a_name_below_the_folder_stays_as_it_is(name):
    assert images.resolve([name], place()).files == [name]


def test_a_whole_path_below_the_folder_becomes_relative(tmp_path):
    names = [f"{tmp_path}/a/1.png", f"file://{tmp_path}/a%20b/2.png"]
    found = images.resolve(names, place(tmp_path)).files
    assert found == ["a/1.png", "a b/2.png"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("http://x.org/1.png", "image on the web"),
        ("HTTPS://x.org/1.png", "image on the web"),
        ("s3://x/1.png", "image on the web"),
        ("/etc/1.png", "image outside the folder"),
        ("a/../../1.png", "image outside the folder"),
        ("a\0.png", "image outside the folder"),
        (".", "image outside the folder"),
        ("\ud800.png", "text"),
        (7, "text"),
        (["a", "b"], "text"),
        ({"path": 3}, "text"),
        ({"bytes": b"<html>", "path": "1.jpg"}, "image"),
        (b"", "image"),
        (" ", "image"),
        ("data:image/png;base64", "image"),
        ("data:image/png;base64,####", "image"),
        ("data:image/png;base64,AAAA", "image"),
        ("data:text/html,<html>", "image"),
    ],
)
def test_what_is_no_picture_on_this_machine_is_refused(image, expected, tmp_path):
    with pytest.raises(RowError) as caught:
        images.resolve([image], place(tmp_path))
    assert caught.value.reason == expected


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_bytes_become_a_file_named_by_content_with_the_suffix_of_their_kind(form, tmp_path):
    content = png(form=form)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    held = [{"bytes": content, "path": "x.gif"}, content, url]
    found = images.resolve(held, place(tmp_path))
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower())
    digest = hashlib.sha256(content).hexdigest()[:32]
    assert found.files == [f"set/{digest[:2]}/{digest}.{suffix}"] * 3
    images.write(found.contents, tmp_path)
    assert (tmp_path / found.files[0]).read_bytes() == content
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / found.files[0]]


def test_bytes_need_a_folder_to_be_written_to():
    with pytest.raises(ValueError, match="--image_folder DIR") as caught:
        images.resolve([png()], place())
    assert not isinstance(caught.value, RowError)  # the run stops: it is not the row's fault
