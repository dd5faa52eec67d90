import json
import os
import shutil

import pytest

from eval.fingerprint import fingerprint


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text('{"a": 1}')
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "README.md").write_text("words")
    return path


def test_the_same_files_elsewhere_are_the_same_model(checkpoint, tmp_path):
    before = fingerprint(checkpoint, "float32", tmp_path / "cache.json", {})
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "README.md").write_text("other words")
    assert fingerprint(copy, "float32", tmp_path / "other.json", {}) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_is_another_model_in_spite_of_the_cache(checkpoint, tmp_path, name):
    cache = tmp_path / "cache.json"
    before = fingerprint(checkpoint, "float32", cache, {})
    path = checkpoint / name
    path.write_bytes(path.read_bytes().swapcase() + b" ")
    assert fingerprint(checkpoint, "float32", cache, {}) != before


def test_another_number_format_is_another_model(checkpoint, tmp_path):
    marks = {fingerprint(checkpoint, d, tmp_path / "c.json", {}) for d in ("float32", "bfloat16")}
    assert len(marks) == 2


def test_known_hashes_are_not_computed_again(checkpoint, tmp_path):
    cache = tmp_path / "cache.json"
    before = fingerprint(checkpoint, "float32", cache, {})
    known = dict.fromkeys(json.loads(cache.read_text()), "0" * 64)
    cache.write_text(json.dumps(known))
    assert fingerprint(checkpoint, "float32", cache, {}) != before  # the cache was believed
    os.remove(cache)
    assert fingerprint(checkpoint, "float32", cache, {}) == before


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a checkpoint: config.json and \*.safetensors"):
        fingerprint(tmp_path, "float32", tmp_path / "cache.json", {})


def test_another_routing_is_another_model(checkpoint, tmp_path):
    routing = {"router": "topk", "router_options": {}, "top_k": 1}
    changes = [
        {},
        {"routing": {"language_model": routing}},
        {"routing": {"projector": routing}},
        {"routing": {"projector": {**routing, "top_k": 2}}},
        {"self_contrast": {"alpha": 0.1, "beta": 0.5, "weak_rank": 2}},
    ]
    cache = tmp_path / "c.json"
    assert len({fingerprint(checkpoint, "float32", cache, change) for change in changes}) == 5
