"""Cached features are the tower's own; what is whole stays, what does not fit is refused."""

import json
import shutil

import pytest
import torch

from llava_compete import cache_features as module
from llava_compete.__main__ import main
from llava_compete.cache_features import cache_features, list_files
from llava_compete.checkpoint import load
from llava_compete.data import Exclusion, ImageFolder, write_exclusions
from llava_compete.data.features import CACHE, FeatureCache, shard_file
from tests import tiny
from tests.test_tower import changed_checkpoint


@pytest.fixture
def toy(tmp_path, checkpoints):
    """Arguments of cache_features over 7 pictures in shards of 3, batches of 2."""
    file, images = tiny.write_rows(tmp_path, 8, text_only={3})
    arguments = {"shard_size": 3, "batch_size": 2, "num_workers": 0}
    given = (checkpoints["dense"], [file], images, tmp_path / "cache")
    return lambda *, output=None, **more: cache_features(
        *given[:3], output or given[3], **{**arguments, **more}
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path):
    return tmp_path / "images"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inodes(folder):
    return [path.stat().st_ino for path in sorted(folder.glob("shard-*"))]


def reference(checkpoint, images, file, dtype=torch.float32):
    """What the whole model's tower makes of one picture."""
    model, processor = load(checkpoint, dtype=dtype)
    picture = ImageFolder(images).open(file, "x")
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.vision(pixels.to(dtype))[0]


def count_forwards(monkeypatch):
    """The sizes of the batches that reach the tower from now on."""
    sizes = []
    forward = module.ImageTower.forward
    monkeypatch.setattr(
        module.ImageTower, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x)
    )
    return sizes


def test_each_picture_has_the_features_of_the_whole_models_tower(toy, images, checkpoints):
    cache = toy()
    assert len(cache) == 7
    assert cache.info.num_shards == 3
    for file in (f"{index}.png" for index in (0, 1, 2, 4, 5, 6, 7)):
        wanted = reference(checkpoints["dense"], images, file)
        torch.testing.assert_close(cache.features(file, images / file), wanted)


def test_a_batch_of_one_gives_the_same_bits(toy, images, checkpoints):
    cache = toy(batch_size=1)
    for file in ("0.png", "7.png"):
        wanted = reference(checkpoints["dense"], images, file)
        assert torch.equal(cache.features(file, images / file), wanted)


def test_bfloat16_is_what_a_bfloat16_tower_gives(toy, images, checkpoints):
    cache = toy(dtype="bfloat16", batch_size=1)
    wanted = reference(checkpoints["dense"], images, "2.png", torch.bfloat16)
    found = cache.features("2.png", images / "2.png")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


def test_workers_change_nothing(toy, folder, tmp_path):
    toy()
    toy(output=tmp_path / "other", num_workers=2)
    assert contents(folder) == contents(tmp_path / "other")


def test_two_processes_write_what_one_writes(toy, folder, tmp_path):
    toy()
    both = tmp_path / "both"
    assert toy(output=both, rank=1, world_size=2) is None
    assert [shard_file(both, i).is_file() for i in range(3)] == [False, True, False]
    with pytest.raises(ValueError, match=r"not whole, 1 of 3 shards"):
        FeatureCache(both)
    assert len(toy(output=both, rank=0, world_size=2)) == 7
    assert contents(folder) == contents(both)


def test_a_run_that_was_killed_goes_on(toy, folder, tmp_path, monkeypatch):
    toy(output=tmp_path / "undisturbed")
    forward = module.ImageTower.forward

    def dies(self, pixels):
        if shard_file(folder, 0).is_file():
            raise KeyboardInterrupt
        return forward(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(module.ImageTower, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            toy()
    (folder / ".shard-00001.safetensors.0.partial").write_bytes(b"half")  # of a kill at writing
    whole = inodes(folder)
    assert len(whole) == 1
    sizes = count_forwards(monkeypatch)
    toy()
    assert sizes == [2, 1, 1]  # shards 1 and 2 alone
    assert inodes(folder)[0] == whole[0]
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_a_whole_cache_is_not_made_again(toy, folder, monkeypatch):
    toy()
    before = contents(folder)
    sizes = count_forwards(monkeypatch)
    toy()
    assert sizes == []
    assert contents(folder) == before


def test_a_changed_picture_and_a_damaged_shard_are_made_anew_and_the_rest_stays(
    toy, folder, images, checkpoints, monkeypatch
):
    toy()
    tiny.draw(99).save(images / "0.png")  # of shard 0
    damaged = shard_file(folder, 2)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    kept = inodes(folder)[1]
    sizes = count_forwards(monkeypatch)
    cache = toy()
    assert sizes == [2, 1, 1]
    assert inodes(folder)[1] == kept
    wanted = reference(checkpoints["dense"], images, "0.png")
    torch.testing.assert_close(cache.features("0.png", images / "0.png"), wanted)


def test_a_picture_named_twice_is_made_once_and_excluded_rows_pictures_not_at_all(tmp_path):
    rows = [tiny.make_row(index) for index in (0, 1, 0)] + [tiny.make_row(9, picture=False)]
    rows[2]["image"] = rows[0]["image"]
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps(rows))
    other.write_text(json.dumps([tiny.make_row(index) for index in (1, 2)]))
    assert list_files([one, other]) == {"0.png": "row-0", "1.png": "row-1", "2.png": "row-2"}
    write_exclusions(tmp_path / "one.out", one, [Exclusion(1, "row-1", "broken")], rows=4)
    write_exclusions(tmp_path / "other.out", other, [Exclusion(0, "row-1", "broken")], rows=2)
    excluded = [tmp_path / "one.out", tmp_path / "other.out"]
    assert set(list_files([one, other], excluded)) == {"0.png", "2.png"}
    with pytest.raises(ValueError, match="1 exclusion files for 2 data files"):
        list_files([one, other], excluded[:1])


def test_rows_without_any_picture_are_refused(tmp_path):
    file, _ = tiny.write_rows(tmp_path, 2, text_only={0, 1})
    with pytest.raises(ValueError, match="no row has a picture"):
        list_files([file])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_with_its_row(toy, images, workers):
    (images / "5.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"^sample row-5: image .*5\.png cannot be read"):
        toy(num_workers=workers)


def test_a_missing_picture_is_named_before_the_tower_runs(toy, folder, images, monkeypatch):
    (images / "7.png").unlink()
    sizes = count_forwards(monkeypatch)
    with pytest.raises(ValueError, match=r"sample row-7: image .*7\.png does not exist"):
        toy()
    assert sizes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype \(the cache's float32, asked for bfloat16\)"),
        ({"shard_size": 4}, r"shard_size \(the cache's 3, asked for 4\)"),
    ],
)
def test_the_folder_of_another_cache_is_refused(toy, change, message):
    toy()
    with pytest.raises(ValueError, match=f"other cached features, which differ in {message}"):
        toy(**change)


def test_a_cache_of_other_pictures_or_another_tower_is_refused(
    toy, tmp_path, images, folder, checkpoints
):
    toy()
    more = {"shard_size": 3, "num_workers": 0}
    rows = [tiny.make_row(index) for index in (0, 1, 2, 4, 5, 6)]
    file = tmp_path / "less.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"num_pictures \(the cache's 7, asked for 6\)"):
        cache_features(checkpoints["dense"], [file], images, folder, **more)
    shutil.copy(images / "0.png", images / "renamed.png")
    file.write_text(json.dumps([*rows, {**tiny.make_row(7), "image": "renamed.png"}]))
    with pytest.raises(ValueError, match="differ in the pictures' names"):
        cache_features(checkpoints["dense"], [file], images, folder, **more)
    other = changed_checkpoint(checkpoints["dense"], tmp_path / "other")
    with pytest.raises(ValueError, match="differ in the tower's weights"):
        cache_features(other, [tmp_path / "rows.json"], images, folder, **more)


def test_a_folder_with_something_else_is_refused(toy, folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        toy()


def test_a_process_that_begins_beside_another_is_no_fault(toy, folder):
    folder.mkdir()
    (folder / f".{CACHE}.1.partial").write_text("{")
    assert len(toy()) == 7


def test_too_small_a_disk_is_refused_with_both_numbers_and_leaves_nothing(toy, folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=int(3.4e9))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(module.CacheInfo, "shard_pictures", lambda self, shard: range(10**7))
    sizes = count_forwards(monkeypatch)
    numbers = (
        r"30,000,000 pictures need 15\.4 GB \(30,000,000 x 4 patches x 32 x 4 bytes\), the disk of "
        r".*/cache has 3\.4 GB free.* bfloat16"
    )
    with pytest.raises(ValueError, match=numbers):
        toy()
    with pytest.raises(ValueError, match=r"need 7\.7 GB .* x 32 x 2 bytes\)(?!.*bfloat16)"):
        toy(dtype="bfloat16")
    assert sizes == []
    assert not folder.exists()


def test_only_what_is_not_there_needs_disk(toy, folder, monkeypatch):
    toy()
    shard_file(folder, 2).unlink()  # of one picture: 512 bytes
    for free, fits in ((511, False), (512, True)):
        usage = shutil.disk_usage("/")._replace(free=free)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            toy()
        else:
            with pytest.raises(ValueError, match="the features of 1 pictures need"):
                toy()


def test_the_command_runs_as_each_process_of_torchrun(tmp_path, checkpoints, monkeypatch, capsys):
    file, images = tiny.write_rows(tmp_path, 3)
    words = [str(checkpoints["dense"]), str(file), "--image_folder", str(images)]
    words += ["--output", str(tmp_path / "cache"), "--num_workers", "0"]
    defaults = {**cache_features.__kwdefaults__, "shard_size": 2}
    monkeypatch.setattr(cache_features, "__kwdefaults__", defaults)
    for rank, said in ((1, "other processes"), (0, "3 pictures, 4 x 32 float32 each, 2 shards")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        main(["cache-features", *words])
        assert said in capsys.readouterr().out
    (images / "1.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"cache-features: error: sample row-1: .*1\.png"):
        main(["cache-features", *words])
