"""Rows and files that nobody wrote by hand: used as documented, or refused by name.

The same examples come at every run.
"""

import io
import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_compete.data import ImageFolder, image_files, to_messages
from llava_compete.data.images import FORMATS
from llava_compete.data.rows import ROLES, row_name, source_of
from llava_compete.processor import IMAGE_TOKEN, count_images

# Derandomised, so that a run on another day says the same; no deadline, since machines are shared.
repeatable = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow],
)

any_text = st.text(st.characters(), max_size=8)  # lone surrogates and NUL, too
words = st.sampled_from(["", " ", "\n", "a", "What?", "<ima", "ge>", IMAGE_TOKEN, "<|im_end|>"])
loaded_text = st.lists(st.one_of(words, any_text), max_size=5).map("".join)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, loaded_text)
keys = st.one_of(
    st.sampled_from(["id", "image", "conversations", "from", "value", "source", "length"]), any_text
)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
turns = st.fixed_dictionaries(
    {"from": st.one_of(st.sampled_from(list(ROLES)), json_values), "value": loaded_text},
    optional={"weight": json_values},
)
nearly_rows = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "image": st.one_of(any_text, st.lists(any_text, max_size=3), json_values),
        "conversations": st.one_of(st.lists(turns, max_size=5), json_values),
        "source": json_values,
        "length": json_values,
        "length_by": json_values,
    },
)


def texts_of(message):
    return [item["text"] for item in message["content"] if item["type"] == "text"]


def check_messages(row, messages):
    """What holds of every row that is taken."""
    assert count_images(messages) == len(image_files(row))
    roles = [message["role"] for message in messages]
    assert roles == [ROLES[turn["from"]] for turn in row["conversations"]]
    spoken = roles[1:] if roles[0] == "system" else roles
    assert spoken
    assert spoken == ["user", "assistant"] * (len(spoken) // 2)
    for message in messages:
        assert message["content"]
        for text in texts_of(message):
            assert text
            assert IMAGE_TOKEN not in text
            text.encode()
        if message["role"] != "user":
            assert len(message["content"]) == 1
            assert texts_of(message)[0].strip()
    json.dumps(messages)


@repeatable
@given(row=st.one_of(json_values, nearly_rows))
def test_any_json_value_is_a_row_that_holds_or_is_refused_by_name(row):
    name = row_name(row, 7) if isinstance(row, dict) else "number 7"
    before = repr(row)
    try:
        messages = to_messages(row, name)
    except ValueError as error:
        assert str(error).startswith(f"sample {name}: ")  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        check_messages(row, messages)
        assert source_of(row)
    assert repr(row) == before


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: "<" not in text and text.strip()
)


@st.composite
def whole_rows(draw):
    """A row as documented, and of each turn its pieces of text between images."""
    pieces, files = [], draw(st.lists(plain.filter(lambda t: "\0" not in t), max_size=4))
    left = len(files)
    count = draw(st.integers(1, 3))
    conversations = []
    for turn in range(count):
        here = left if turn == count - 1 else draw(st.integers(0, left))
        left -= here
        pieces.append(draw(st.lists(plain, min_size=here + 1, max_size=here + 1)))
        pieces.append([draw(plain)])
        for speaker, texts in zip(("human", "gpt"), pieces[-2:], strict=True):
            conversations.append({"from": speaker, "value": IMAGE_TOKEN.join(texts)})
    if draw(st.booleans()):
        pieces.insert(0, [draw(plain)])
        conversations.insert(0, {"from": "system", "value": pieces[0][0]})
    row = {"conversations": conversations, **draw(st.dictionaries(st.just("extra"), json_values))}
    if files or draw(st.booleans()):
        row["image"] = files[0] if len(files) == 1 and draw(st.booleans()) else files
    if draw(st.booleans()):
        row["id"] = draw(st.one_of(plain, st.integers(), st.none()))
    return row, pieces


@repeatable
@given(row_and_pieces=whole_rows())
def test_a_whole_row_keeps_every_text_and_the_place_of_every_image(row_and_pieces):
    row, pieces = row_and_pieces
    messages = to_messages(json.loads(json.dumps(row)))
    check_messages(row, messages)
    for message, texts in zip(messages, pieces, strict=True):
        if len(texts) == 2:
            wanted = ["image", (texts[0] + texts[1]).strip()]
        else:
            wanted = [texts[0].strip("\n")]
            for text in texts[1:]:
                wanted += ["image", text.strip("\n")]
        found = [item.get("text", "image") for item in message["content"]]
        assert found == [text for text in wanted if text]


MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"),
}


def files_of(format_name):
    """A whole file of that format in each mode, with EXIF where it may have that."""
    noise = Image.effect_noise((24, 16), 60)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    for mode in MODES[format_name]:
        file = io.BytesIO()
        picture = noise.convert(mode if mode == "F" else "RGB").convert(mode)
        picture.save(file, format_name, exif=exif)
        yield file.getvalue()


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_with_changed_bytes_is_a_picture_or_is_refused_by_name(tmp_path, format_name):
    generator = np.random.default_rng(0)
    folder, path = ImageFolder(tmp_path), tmp_path / "a"
    wholes = list(files_of(format_name))
    refused = 0
    for turn in range(200):
        content = bytearray(wholes[turn % len(wholes)])
        for _ in range(generator.integers(1, 5)):
            place = int(generator.exponential(len(content) / 8))  # headers more than pixels
            content[min(place, len(content) - 1)] = generator.integers(256)
        path.write_bytes(
            content[: generator.integers(1, len(content))] if turn % 8 == 0 else content
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on EXIF and TIFF tags
            try:
                picture = folder.open("a", "s1", (None, 4, 224)[turn % 3])
            except ValueError as error:
                assert str(error).startswith("sample s1: image ")  # noqa: PT017
                refused += 1
            else:
                assert picture.mode == "RGB"
                assert min(picture.size) > 0
    assert refused > 20
