"""The manifest of a training checkpoint: its files, and how they came to be.

A checkpoint directory is whole where its manifest is, since that is written last, and where it
holds: every file named in it has its size and its SHA-256. The manifest has a digest of itself.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
PACKAGES = ("llava-compete", "torch", "transformers", "deepspeed", "accelerate", "safetensors")
HASHERS = 8  # threads that read files to hash them


class File(NamedTuple):
    """What a file of a checkpoint has to be."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a training checkpoint is, its files by their path below the checkpoint."""

    step: int
    world_size: int
    zero_stage: int  # 0: without DeepSpeed
    resumable: bool  # has it optimizer and random states, too?
    recipe: Mapping[str, Any]  # the keys that were given, with the values they came to
    settings: Mapping[str, Any]  # what a resume must not change
    versions: Mapping[str, str]
    files: Mapping[str, File]


def package_versions() -> dict[str, str]:
    """Versions of what writes a checkpoint."""
    return {name: version(name) for name in PACKAGES}


def list_files(folder: Path) -> list[str]:
    """Paths of all files below a checkpoint but the manifest, in order."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def hash_files(folder: Path, names: Iterable[str], *, sync: bool = False) -> dict[str, File]:
    """Size and SHA-256 of files below ``folder``; with ``sync`` they are on the disk then."""

    def hashed(name: str) -> File:
        with (folder / name).open("rb") as opened:
            if sync:
                os.fsync(opened.fileno())
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return File(os.fstat(opened.fileno()).st_size, digest)

    names = list(names)
    with ThreadPoolExecutor(HASHERS) as threads:
        return dict(zip(names, threads.map(hashed, names), strict=True))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write MANIFEST into a checkpoint, whole or not at all, and onto the disk."""
    values = json.loads(json.dumps({"format": FORMAT, **asdict(manifest)}))
    values["files"] = {name: file._asdict() for name, file in manifest.files.items()}
    partial = folder / f".{MANIFEST}"
    with partial.open("w") as opened:
        json.dump({**values, "digest": _digest(values)}, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    partial.rename(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint directory; ValueError says why there is none that holds."""
    file = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory")
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST}: it is no checkpoint of a training, or its writing was cut"
        )
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:  # JSON's and Unicode's
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, dict) or values.pop("digest", None) != _digest(values):
        raise ValueError(f"{file} is damaged: its digest is another")
    if values.pop("format") != FORMAT:
        raise ValueError(f"{file} was written by another version, which knew other manifests")
    files = {name: File(**entry) for name, entry in values.pop("files").items()}
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file} names {name!r}, which lies outside the checkpoint")
    return Manifest(files=files, **values)


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """ValueError names the first file that is missing or not what the manifest says.

    Sizes are compared first, and without ``hashes`` alone.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != expected.bytes:
            raise ValueError(f"{path} has {size} bytes, {expected.bytes} were written")
    if not hashes:
        return
    for name, found in hash_files(folder, manifest.files).items():
        if found.sha256 != manifest.files[name].sha256:
            raise ValueError(f"{folder / name} has other bytes than were written (SHA-256)")


def sync_files(folder: Path) -> None:
    """All files below ``folder`` are on the disk."""
    for name in list_files(folder):
        with (folder / name).open("rb") as opened:
            os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Names in ``folder`` are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
