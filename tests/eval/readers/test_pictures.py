import base64
import hashlib
import io

import pytest
from PIL import Image

from eval.readers.pictures import keep_picture


def drawn(kind="PNG", colour="red"):
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(sink, kind)
    return sink.getvalue()


@pytest.mark.parametrize(("kind", "ext"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_a_picture_is_kept_as_it_is_under_its_digest(tmp_path, kind, ext):
    content = drawn(kind)
    path = keep_picture(tmp_path, "here", {"bytes": content, "path": None})
    assert path == tmp_path / ".pictures" / f"{hashlib.sha256(content).hexdigest()}.{ext}"
    assert path.read_bytes() == content


def test_the_same_picture_is_kept_once_however_it_comes(tmp_path):
    content = drawn()
    cells = [{"bytes": content, "path": "a.png"}, content, base64.b64encode(content).decode()]
    paths = {keep_picture(tmp_path, "here", cell) for cell in cells}
    assert len(paths) == 1
    assert list((tmp_path / ".pictures").iterdir()) == list(paths)


def test_a_picture_that_is_there_is_not_written_again(tmp_path):
    path = keep_picture(tmp_path, "here", drawn())
    before = path.stat().st_mtime_ns
    assert keep_picture(tmp_path, "here", drawn()).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "cell is empty"),
        ("", "cell is empty"),
        ({"bytes": None, "path": "a.png"}, "cell is empty"),
        ("not base64!", "not base64"),
        (base64.b64encode(b"text").decode(), "4 bytes that are no picture"),
        (b"text", "4 bytes that are no picture"),
        (drawn("ICO"), "a picture of type ICO"),
    ],
)
def test_a_cell_that_is_no_picture_is_refused_with_its_place(tmp_path, cell, message):
    with pytest.raises(ValueError, match=f"file:row 3: .*{message}"):
        keep_picture(tmp_path, "file:row 3", cell)
    assert not (tmp_path / ".pictures").exists()
