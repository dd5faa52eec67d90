"""Cached features are found by file name, once they are checked against checkpoint and picture."""

import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from llava_compete.cache_features import cache_features
from llava_compete.data import features as module
from llava_compete.data.features import CACHE, PICTURES, FeatureCache, FeatureKey, shard_file
from llava_compete.tower import read_key
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


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(made, start):
    folder, images = made
    cache = FeatureCache(folder)
    cache.features("0.png", images / "0.png")  # a shard is open when the workers begin
    loader = DataLoader(
        Features(cache, images), batch_size=2, num_workers=2, multiprocessing_context=start
    )
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
