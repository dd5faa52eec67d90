import json

import pytest

from llava_compete.data import (
    read_rows,
)
from tests import tiny
from tests.tiny import say


def test_json_and_jsonl_give_the_same_rows(tmp_path):
    first, _ = tiny.write_rows(tmp_path, 4, name="a.json")
    second, _ = tiny.write_rows(tmp_path, 4, name="b.jsonl")
    assert read_rows(first) == read_rows(second)
    assert len(read_rows(first)) == 4


def test_line_breaks_inside_a_jsonl_string_and_blank_lines_do_not_split_a_row(tmp_path):
    rows = [say("a\u2028b\x85c", "ok"), say("d", "ok")]
    file = tmp_path / "rows.jsonl"
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(text + "\n", encoding="utf-8")
    assert read_rows(file) == rows


def test_broken_files_are_refused_with_file_and_line(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl line 2 is not JSON"):
        read_rows(lines)
    whole = tmp_path / "rows.json"
    whole.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"rows.json is not JSON"):
        read_rows(whole)
    whole.write_text('{"id": 1}')
    with pytest.raises(ValueError, match="a LLaVA file is a JSON list of rows, found dict"):
        read_rows(whole)
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        read_rows(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", '[{"id": 1}, "text"]'), ("rows.jsonl", '{"id": 1}\n"text"\n')]
)
def test_a_row_that_is_no_object_is_named(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match="row 2 must be an object, found 'text'"):
        read_rows(file)
