"""A tower alone is the whole model's, its key knows every number; when a training may use it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_compete.cache_features import cache_features
from llava_compete.checkpoint import load
from llava_compete.tower import fingerprint, load_tower, open_features, read_key
from llava_compete.training.parts import set_trainable
from tests import tiny


def changed_checkpoint(source, folder):
    """A copy whose tower has one number changed."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision."))
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path, checkpoints):
    """Cached features of two pictures."""
    file, images = tiny.write_rows(tmp_path, 2)
    cache_features(checkpoints["dense"], [file], images, tmp_path / "cache", num_workers=0)
    return tmp_path / "cache"


def test_a_tower_with_experts_is_refused(tmp_path):
    experts = tiny.make_checkpoint(tmp_path / "experts", parts=["vision"])
    with pytest.raises(ValueError, match="its image tower has experts"):
        load_tower(experts)


def test_the_tower_is_the_whole_models_and_its_fingerprint_knows_every_number(
    checkpoints, tmp_path
):
    tower = load_tower(checkpoints["dense"])
    model, processor = load(checkpoints["dense"])
    weights = model.vision.state_dict()
    assert set(tower.model.state_dict()) == set(weights)
    assert all(
        torch.equal(value, weights[name]) for name, value in tower.model.state_dict().items()
    )
    assert tower.key.tower == fingerprint(weights)
    assert tower.key.vision == model.config.vision.to_dict()
    settings = json.loads(json.dumps(processor.image_processor.to_dict()))
    assert tower.key.image_processor == settings
    assert read_key(checkpoints["dense"]) == tower.key
    changed = changed_checkpoint(checkpoints["dense"], tmp_path / "changed")
    assert read_key(changed).tower != tower.key.tower


def test_a_fingerprint_is_of_names_shapes_and_values_not_of_the_dtype_they_are_kept_in():
    weights = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    same = fingerprint(weights)
    assert fingerprint({"b": weights["b"], "a": weights["a"].bfloat16()}) == same
    others = (
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(4)},
        {"a": torch.arange(6.0) + 1e-6, "b": torch.tensor(3)},
    )
    assert all(fingerprint(other) != same for other in others)


def test_weights_in_several_files_are_found(checkpoints, tmp_path):
    model, processor = load(checkpoints["dense"])
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="50KB")
    processor.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    assert load_tower(folder).key == read_key(checkpoints["dense"])


def test_a_checkpoint_whose_weights_do_not_fit_or_are_damaged_is_refused(checkpoints, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(checkpoints["dense"], folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if name.startswith("vision.")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"torn does not fit its config\.json"):
        load_tower(folder)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="torn is damaged"):
        read_key(folder)


def test_features_are_opened_for_the_checkpoint_that_made_them(folder, checkpoints):
    model, _ = load(checkpoints["dense"])
    set_trainable(model, ["projector", "language_model"])
    assert len(open_features(folder, model, checkpoints["dense"])) == 2


def test_features_of_another_checkpoint_are_refused(folder, checkpoints, tmp_path):
    model, _ = load(checkpoints["dense"])
    set_trainable(model, ["projector"])
    changed = changed_checkpoint(checkpoints["dense"], tmp_path / "changed")
    with pytest.raises(ValueError, match="differ in the tower's weights: run"):
        open_features(folder, model, changed)


def test_features_of_a_tower_that_is_trained_are_refused(folder, checkpoints):
    model, _ = load(checkpoints["dense"])
    set_trainable(model, ["projector", "vision"])
    with pytest.raises(ValueError, match=r"the image tower is trained .* out of trainable"):
        open_features(folder, model, checkpoints["dense"])


def test_features_of_a_tower_with_experts_are_refused(folder, tmp_path):
    experts = tiny.make_checkpoint(tmp_path / "experts", parts=["vision", "projector"])
    model, _ = load(experts)
    set_trainable(model, ["projector"])
    with pytest.raises(ValueError, match="the image tower has experts"):
        open_features(folder, model, experts)
    set_trainable(model, ["routers"])
    with pytest.raises(ValueError, match="the image tower is trained"):
        open_features(folder, model, experts)
