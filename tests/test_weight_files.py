"""Files that would do harm: refused, and nothing of them has run."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_compete import load
from llava_compete.__main__ import main
from llava_compete.foreign import towers
from llava_compete.weight_files import read_folder, read_index, read_weights
from tests import tiny


class Harm:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def write_header(file: Path, header: dict, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of that header, as it stands."""
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def f32(shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "a header longer than the file": ({"a": f32([2], 0, 8)}, b"12345678", 10**6),
    "a header of 2**60 bytes": ({"a": f32([2], 0, 8)}, b"12345678", 2**60),
    "data behind the end": ({"a": f32([200], 0, 800)}, b"12345678", None),
    "a shape that its bytes do not hold": ({"a": f32([2000], 0, 8)}, b"12345678", None),
    "tensors on top of each other": (
        {"a": f32([2], 0, 8), "b": f32([2], 4, 12)},
        b"123456789012",
        None,
    ),
    "a hole": ({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, b"123456789012", None),
    "an offset that turns back": ({"a": f32([2], 8, 0)}, b"12345678", None),
    "a shape whose product overflows": ({"a": f32([2**33, 2**33], 0, 8)}, b"12345678", None),
    "an unknown dtype": (
        {"a": {"dtype": "CODE", "shape": [2], "data_offsets": [0, 8]}},
        b"12345678",
        None,
    ),
    "no JSON": ({}, b"", 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, lie):
    file = write_header(tmp_path / "model.safetensors", *LIES[lie])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(file)


@pytest.mark.parametrize("lie", LIES)
def test_load_refuses_a_safetensors_header_that_lies(tmp_path, checkpoints, lie):
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["dense"], copy)
    write_header(copy / "model.safetensors", *LIES[lie])
    with pytest.raises(ValueError, match="is damaged"):
        load(copy)


@pytest.mark.parametrize("protocol", [2, None])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, wrapped, protocol):
    mark, file = tmp_path / "mark", tmp_path / "pytorch_model.bin"
    harm = {"state_dict": {"a": Harm(mark)}} if wrapped else Harm(mark)
    if protocol is None:
        torch.save(harm, file)
    else:
        file.write_bytes(pickle.dumps(harm, protocol=protocol))
    with pytest.raises(ValueError, match="pickled code is never run"):
        read_folder(tmp_path)
    assert not mark.exists()
    os.system(f"touch {mark}")  # what the pickle would have done
    assert mark.exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": "text"}, {"a": {"b": torch.ones(1)}}])
def test_pickles_of_anything_but_tensors_by_name_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="does not hold tensors by name"):
        read_weights(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("cut", [0, 7, 300])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, name, cut):
    file = tmp_path / name
    state = {"a": torch.ones(200)}
    if name.endswith(".bin"):
        torch.save(state, file)
    else:
        save_file(state, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(file)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, None]
)
@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path, layout, name):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    index = folder / f"{layout}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="only the name of a file beside the index is read"):
        read_folder(folder)


def test_load_refuses_an_index_that_points_outside_its_folder(tmp_path, checkpoints):
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["dense"], copy)
    outside = tmp_path / "model.safetensors"
    (copy / "model.safetensors").rename(outside)
    weight_map = dict.fromkeys(load_file(outside), "../model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="only the name of a file beside the index is read"):
        load(copy)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (
            "processor_config.json",
            {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}},
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
        ),
    ],
)
def test_load_runs_no_code_of_the_checkpoint_and_does_not_ask_to(
    tmp_path, checkpoints, file, values
):
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["dense"], copy)
    (copy / "evil.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass Evil: pass\n"
    )
    known = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(known | values))
    with pytest.raises(ValueError, match="contains custom code"):
        load(copy)
    assert not (tmp_path / "mark").exists()


def test_a_tower_s_folder_runs_no_code_and_does_not_ask_to(tmp_path):
    values = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="contains custom code"):
        towers.read_config("a tower", str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_the_verbs_refuse_a_pickle_that_would_run_code(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"a": Harm(mark)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14"}
        )
    )
    with pytest.raises(SystemExit, match="pickled code is never run"):
        main(["import", str(tmp_path), str(tmp_path / "out")])
    language_model = tiny.make_language_model(tmp_path / "lm")
    compose = [
        "compose",
        "--language_model",
        str(language_model),
        "--output",
        str(tmp_path / "out"),
    ]
    tower = ["--vision", "ViT-B-32", "--vision_weights", str(tmp_path / "pytorch_model.bin")]
    norm = ["--image_mean", *"000", "--image_std", *"111", "--no-quick_gelu"]
    with pytest.raises(SystemExit, match="pickled code is never run"):
        main([*compose, *tower, *norm])
    assert not mark.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\xff"])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is no index of weights"):
        read_index(index)


def test_shards_hold_exactly_what_the_index_says(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"differ in 1 tensors, \['b'\]"):
        read_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors"}}))
    with pytest.raises(ValueError, match=r"names two\.safetensors, which is not there"):
        read_folder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no weights"):
        read_folder(tmp_path)
