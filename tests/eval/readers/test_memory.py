import os

import pytest

from eval.readers.memory import recall, remember, state


def test_what_is_remembered_is_recalled(tmp_path):
    file = tmp_path / "a/b.json"
    assert recall(file) == {}
    remember(file, {"x": [1, None]})
    assert recall(file) == {"x": [1, None]}
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]


def test_a_place_that_cannot_be_written_to_is_left_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    remember(tmp_path / "a/b.json", {})
    assert asked == [(tmp_path, os.W_OK)]
    assert not list(tmp_path.iterdir())


def test_a_memory_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON file .* delete it"):
        recall(tmp_path / "a.json")


def test_a_file_of_another_size_or_time_has_another_state(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = state(file)
    assert state(file) == before
    os.utime(file, ns=(0, before[1] + 1))
    assert state(file) != before
    file.write_bytes(b"more")
    os.utime(file, ns=(0, before[1]))
    assert state(file) != before
