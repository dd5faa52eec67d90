"""The manifest of a checkpoint: what it says of a damaged file, and of itself."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llava_compete.training.manifest import (
    MANIFEST,
    File,
    Manifest,
    check_files,
    hash_files,
    list_files,
    package_versions,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / "global_step3").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"0123456789" * 300)
    (checkpoint / "global_step3" / "shard.pt").write_bytes(b"states")
    return checkpoint


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return Manifest(
        step=3,
        world_size=2,
        zero_stage=1,
        resumable=True,
        recipe={"seed": 7, "trainable": ["projector"]},
        settings={"seed": 7},
        versions=package_versions(),
        files=hash_files(folder, list_files(folder)),
    )


def test_what_is_written_is_read(folder: Path, manifest: Manifest) -> None:
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    check_files(folder, manifest)
    assert list(manifest.files) == ["global_step3/shard.pt", "model.safetensors"]
    digest = hashlib.sha256(b"states").hexdigest()
    assert manifest.files["global_step3/shard.pt"] == File(6, digest)
    assert set(manifest.versions) >= {"torch", "transformers", "deepspeed", "llava-compete"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip, "has other bytes"), (cut, "has 2999 bytes, 3000 were"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_named(
    folder: Path, manifest: Manifest, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors {reason}"):
        check_files(folder, manifest)


def test_sizes_alone_do_not_see_a_flipped_bit(folder: Path, manifest: Manifest) -> None:
    flip(folder / "model.safetensors")
    check_files(folder, manifest, hashes=False)


@pytest.mark.parametrize("byte", range(0, 400, 13))
def test_a_flipped_bit_of_the_manifest_is_seen(folder: Path, manifest: Manifest, byte: int) -> None:
    write_manifest(folder, manifest)
    data = bytearray((folder / MANIFEST).read_bytes())
    data[byte] ^= 1
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        read_manifest(folder)


def test_a_folder_without_manifest_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest.json: it is no checkpoint"):
        read_manifest(folder)
    with pytest.raises(ValueError, match="is not a directory"):
        read_manifest(folder / "nothing")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b"])
def test_a_manifest_names_nothing_outside_its_checkpoint(
    folder: Path, manifest: Manifest, name: str
) -> None:
    write_manifest(folder, replace(manifest, files={name: File(1, "0")}))
    with pytest.raises(ValueError, match="lies outside the checkpoint"):
        read_manifest(folder)
