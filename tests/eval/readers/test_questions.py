import json

import pytest

from eval.readers import find, read_jsonl, read_questions
from eval.readers.fields import read_json

LAYOUT = "  ROOT/questions.jsonl"


def write(root, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "questions.jsonl").write_text("\n".join(lines) + "\n")


def row(**changes):
    return {"id": "1", "image": None, "question": "What?", "answer": "that"} | changes


def read(root):
    return read_questions(root, ["questions.jsonl"], LAYOUT)


def test_a_row_becomes_a_sample(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    write(tmp_path, row(image="a.png", options=["x", "y"], group="g"), "", row(id="2"))
    first, second = read(tmp_path)
    assert first.images == (tmp_path / "a.png",)
    assert (first.prompt, first.references) == ("What?", ("that",))
    assert (first.options, first.group) == (("x", "y"), "g")
    assert (second.images, second.options, second.group) == ((), (), "")


def test_a_missing_file_names_every_path_and_the_layout(tmp_path):
    with pytest.raises(ValueError, match="looked for") as error:
        find(tmp_path, ["one.jsonl", "two/three.jsonl"], LAYOUT)
    for part in (tmp_path / "one.jsonl", tmp_path / "two/three.jsonl", LAYOUT):
        assert str(part) in str(error.value)


def test_the_first_candidate_found_is_read(tmp_path):
    write(tmp_path, row())
    found = read_questions(tmp_path, ["absent.jsonl", "questions.jsonl"], LAYOUT)
    assert len(found) == 1


def test_missing_pictures_are_listed_once_in_one_message(tmp_path):
    write(tmp_path, *(row(id=str(i), image=f"{i % 8}.png") for i in range(16)))
    with pytest.raises(ValueError, match="and 3 more") as error:
        read(tmp_path)
    assert str(tmp_path / "0.png") in str(error.value)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_picture_outside_the_root_is_refused(tmp_path, image):
    write(tmp_path, row(image=image))
    with pytest.raises(ValueError, match="must stay inside the data root"):
        read(tmp_path)


def test_a_link_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.png").write_bytes(b"")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    write(root, row(image="link.png"))
    with pytest.raises(ValueError, match="must stay inside the data root"):
        read(root)


def test_an_id_used_twice_is_refused_with_its_line(tmp_path):
    write(tmp_path, row(), row(id="2"), row())
    with pytest.raises(ValueError, match=r"questions.jsonl:3: the id '1' is used twice"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "a JSON object was expected, not list"),
        ({"id": "1", "question": "?", "answer": "a"}, "'image' is missing"),
        (row(id=7), "id=7 must be a text"),
        (row(answer=" "), "answer=' ' must be a text that is not empty"),
        (row(options="AB"), "options='AB' must be a list"),
        (row(options=[1]), "must be a list of texts"),
        (row(group=None), "group=None must be a text"),
    ],
)
def test_a_bad_row_is_refused_by_line(tmp_path, bad, message):
    write(tmp_path, row(id="0"), bad)
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: ") as error:
        read(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("read", [lambda path: list(read_jsonl(path)), read_json])
def test_a_file_in_another_encoding_is_named(tmp_path, read):
    (tmp_path / "a.json").write_bytes('{"text": "\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json: not a text in UTF-8"):
        read(tmp_path / "a.json")
