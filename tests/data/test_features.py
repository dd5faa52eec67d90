"""Cached features are found by file name, once they are checked against checkpoint and picture."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from llava_compete.cache_features import cache_features
from llava_compete.data import ImageFolder, LlavaDataset
from llava_compete.data import features as module
from llava_compete.data.features import CACHE, PICTURES, FeatureCache, FeatureKey, shard_file
from llava_compete.tower import read_key
from llava_compete.training.prepare import prepare, run
from llava_compete.vision import ImageTower
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoints):
    """A cache of 5 pictures in shards of 2, and the folder of its pictures; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    file, images = tiny.write_rows(root, 5)
    cache_features(
        checkpoints["dense"], [file], images, root / "cache", num_workers=0, shard_size=2
    )
    return root / "cache", images


@pytest.fixture
def copied(made, tmp_path):
    """The same, to be changed."""
    for source, name in zip(made, ("cache", "images"), strict=True):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "cache", tmp_path / "images"


def everything(folder, images):
    cache = FeatureCache(folder)
    return torch.stack([cache.features(f"{i}.png", images / f"{i}.png") for i in range(5)])


def test_features_are_a_pictures_own_and_own_their_memory(made):
    folder, images = made
    found_5PV = everything(folder, images)
    assert found_5PV.shape == (5, 4, 32)
    assert all(not torch.equal(found_5PV[i], found_5PV[j]) for i in range(5) for j in range(i))
    one = FeatureCache(folder).features("3.png", images / "3.png")
    assert one.untyped_storage().nbytes() == one.numel() * 4  # not a view of a whole shard


def test_a_row_without_pictures_has_features_of_none(made):
    empty = FeatureCache(made[0]).empty()
    assert empty.shape == (0, 4, 32)
    assert empty.dtype == torch.float32


def test_a_file_that_is_not_cached_is_refused(made):
    folder, images = made
    for name in ("", "33.png", "zzz"):
        with pytest.raises(ValueError, match=rf"image {name} is not among the 5 of .*all data"):
            FeatureCache(folder).features(name, images / "3.png")


def test_a_changed_picture_is_refused_and_a_touched_or_copied_one_is_not(copied):
    folder, images = copied
    before = everything(folder, images)
    content = (images / "1.png").read_bytes()
    os.utime(images / "1.png", ns=(1, 1))
    assert torch.equal(everything(folder, images), before)
    for changed in (content + b"x", content[:-1] + b"x"):  # of another size; of the same
        (images / "1.png").write_bytes(changed)
        with pytest.raises(ValueError, match=r"1\.png has changed since .*cache-features. again"):
            everything(folder, images)


def test_shards_are_opened_when_asked_for_and_only_so_many_stay_open(made, monkeypatch):
    folder, images = made
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    cache = FeatureCache(folder)
    opened = []
    really = module.safe_open
    monkeypatch.setattr(
        module, "safe_open", lambda file, **k: opened.append(file) or really(file, **k)
    )
    for index in (0, 1, 2, 0, 4, 1, 3):
        cache.features(f"{index}.png", images / f"{index}.png")
    # 4 puts out shard 1, which was used before shard 0 was.
    assert opened == [shard_file(folder, shard) for shard in (0, 1, 2, 1)]
    assert len(cache._shards) == 2


def test_a_pickled_cache_is_small_and_gives_the_same(made):
    folder, images = made
    cache = FeatureCache(folder)
    first = cache.features("0.png", images / "0.png")
    content = pickle.dumps(cache)
    assert len(content) < 500
    assert torch.equal(pickle.loads(content).features("0.png", images / "0.png"), first)


class Features(torch.utils.data.Dataset):
    def __init__(self, cache, images):
        self.cache, self.images = cache, images

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.cache.features(f"{index}.png", self.images / f"{index}.png")


def test_workers_read_what_one_process_reads(made):
    folder, images = made
    cache = FeatureCache(folder)
    cache.features("0.png", images / "0.png")  # a shard is open when the workers begin
    loader = DataLoader(Features(cache, images), batch_size=2, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), everything(folder, images))


def test_the_checkpoint_it_was_made_by_passes(made, checkpoints):
    cache = FeatureCache(made[0])
    cache.check(read_key(checkpoints["dense"]))


def changed(key, part, **values):
    return replace(key, **{part: {**getattr(key, part), **values}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: replace(key, tower="0" * 64), "the tower's weights"),
        (
            lambda key: changed(key, "vision", layer=-3),
            r"vision_config\.layer \(the cache's -2, the checkpoint's -3\)",
        ),
        (lambda key: changed(key, "vision", scales=[1, 2]), r"vision_config\.scales .*\[1, 2\]"),
        (lambda key: changed(key, "vision", quick_gelu=True), r"vision_config\.quick_gelu"),
        (
            lambda key: changed(key, "image_processor", image_mean=[0.0, 0.0, 0.0]),
            r"image_processor\.image_mean",
        ),
        (lambda key: changed(key, "image_processor", new=1), r"image_processor\.new .*None.*1"),
        (lambda key: changed(key, "image_processor", do_pad=False), r"image_processor\.do_pad"),
    ],
)
def test_each_part_of_the_key_is_compared_and_named(made, checkpoints, change, message):
    key = read_key(checkpoints["dense"])
    with pytest.raises(ValueError, match=rf"not this checkpoint's; .*{message}.*another folder"):
        FeatureCache(made[0]).check(change(key))


def test_all_that_differs_is_named_at_once():
    one = FeatureKey(tower="a", vision={"layer": 1, "width": 2}, image_processor={"size": 3})
    other = FeatureKey(tower="b", vision={"layer": 2, "width": 2}, image_processor={"size": 4})
    found = one.differences(other)
    assert [text.split(" (")[0] for text in found] == [
        "the tower's weights",
        "vision_config.layer",
        "image_processor.size",
    ]
    assert one.differences(one) == []


def test_a_folder_without_a_whole_cache_is_refused(copied, tmp_path):
    folder, images = copied
    with pytest.raises(ValueError, match=r"holds no cached features .* cache-features"):
        FeatureCache(tmp_path)
    shard_file(folder, 1).write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors .* cannot be read"):
        everything(folder, images)
    shard_file(folder, 1).unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors .* cannot be read"):
        everything(folder, images)
    (folder / PICTURES).unlink()
    with pytest.raises(ValueError, match="not whole, 2 of 3 shards are there"):
        FeatureCache(folder)
    (folder / CACHE).write_text('{"key": {}}')
    with pytest.raises(ValueError, match="not of this version's form"):
        FeatureCache(folder)


@pytest.fixture
def recipe(tmp_path, checkpoints):
    """Rows of one picture, of none and of two, three to a batch."""
    file, images = tiny.write_rows(tmp_path, 9, text_only={3, 4})
    rows = json.loads(file.read_text())
    rows[8]["image"] = ["8.png", "0.png"]
    rows[8]["conversations"][0]["value"] = "<image><image>\nWhich is larger?"
    file.write_text(json.dumps(rows))
    return {
        "checkpoint": str(checkpoints["dense"]),
        "trainable": ["projector"],
        "data_path": str(file),
        "image_folder": str(images),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }


def train(recipe, **changes):
    """The trainer after the recipe's training, and its losses."""
    file = Path(recipe["output_dir"]).with_name("recipe.yaml")
    recipe = {**recipe, **changes}
    file.write_text(yaml.safe_dump(recipe))
    trainer, resume_from = prepare([str(file)])
    run(trainer, resume_from)
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def cache_for(recipe, **more):
    folder = Path(recipe["output_dir"]).with_name("cache")
    cache_features(
        Path(recipe["checkpoint"]),
        [Path(recipe["data_path"])],
        Path(recipe["image_folder"]),
        folder,
        num_workers=0,
        shard_size=4,
        **more,
    )
    return str(folder)


def no_tower(*_):
    raise AssertionError("the tower runs")


def test_a_training_of_the_projector_has_the_same_losses_without_running_the_tower(
    recipe, tmp_path, monkeypatch
):
    _, wanted = train(recipe)
    folder = cache_for(recipe)
    monkeypatch.setattr(ImageTower, "forward", no_tower)
    monkeypatch.setattr(ImageFolder, "open", no_tower)
    output = str(tmp_path / "cached")
    _, found = train(recipe, features=folder, output_dir=output)
    assert len(found) == 6
    assert found[-1] < found[0]
    assert found == pytest.approx(wanted, abs=1e-5)
    one, other = (
        load_file(Path(run) / "model.safetensors") for run in (recipe["output_dir"], output)
    )
    assert one.keys() == other.keys()  # the tower is in the checkpoint
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_batches_of_the_towers_own_shapes_give_the_losses_bit_for_bit(recipe, tmp_path):
    rows = [tiny.make_row(index, picture=index != 1) for index in (0, 1, 2, 5)]
    Path(recipe["data_path"]).write_text(json.dumps(rows))
    one_each = {"per_device_train_batch_size": 1}
    _, wanted = train(recipe, **one_each)
    folder = cache_for(recipe, batch_size=1)
    _, found = train(recipe, features=folder, output_dir=str(tmp_path / "cached"), **one_each)
    assert found == wanted


def test_features_reach_the_model_in_its_own_dtype(recipe, tmp_path):
    _, wanted = train(recipe)
    folder = cache_for(recipe, dtype="bfloat16")
    _, found = train(recipe, features=folder, output_dir=str(tmp_path / "cached"))
    assert found == pytest.approx(wanted, rel=0.02)


def test_routers_of_the_language_model_and_the_projector_train_on_cached_features(
    recipe, checkpoints, tmp_path
):
    recipe |= {"checkpoint": str(checkpoints["moe"]), "competition_rate": 0.5}
    recipe |= {"competition_warmup": 1, "routing_steps": 2, "trainable": ["projector", "routers"]}
    trainer, _ = train(recipe)
    cached, _ = train(recipe, features=cache_for(recipe), output_dir=str(tmp_path / "cached"))
    for one, other in zip(trainer.state.log_history, cached.state.log_history, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_seconds"}:
            if "runtime" not in name and "per_second" not in name:
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ["projector", "vision"]}, "the image tower is trained"),
        ({"features": "nowhere"}, "nowhere holds no cached features"),
    ],
)
def test_a_training_that_must_run_its_tower_is_refused_before_the_first_step(
    recipe, changes, message
):
    file = Path(recipe["output_dir"]).with_name("recipe.yaml")
    file.write_text(yaml.safe_dump({**recipe, "features": cache_for(recipe), **changes}))
    with pytest.raises(ValueError, match=message):
        prepare([str(file)])


def test_a_long_row_loses_the_features_of_the_turns_it_loses(made, processor, tmp_path):
    folder, images = made
    row = {"id": "long", "image": ["0.png", "1.png"], "conversations": []}
    for speaker, text in (
        ("human", "<image>\na"),
        ("gpt", "b"),
        ("human", "<image>\nc"),
        ("gpt", "d"),
    ):
        row["conversations"].append({"from": speaker, "value": text})
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    cache = FeatureCache(folder)
    whole = LlavaDataset(file, images, processor, features=cache)
    short = LlavaDataset(file, images, processor, int(whole.lengths[0]) - 1, features=cache)
    wanted = [cache.features(f"{index}.png", images / f"{index}.png") for index in range(2)]
    assert torch.equal(whole[0]["image_features"], torch.stack(wanted))
    assert torch.equal(short[0]["image_features"], torch.stack(wanted[:1]))
    pixels = LlavaDataset(file, images, processor, short.max_length)[0]
    for name in ("input_ids", "labels"):
        assert torch.equal(short[0][name], pixels[name])
    assert len(pixels["pixel_values"]) == 1
