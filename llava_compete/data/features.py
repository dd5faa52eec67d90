"""Cached features of a frozen image tower, as training reads them.

P patches a picture, V feature width.

A cache is a folder that ``llava-compete cache-features`` fills:

``cache.json``        of which tower, image processor and pictures; written first
``shard-00000.safetensors`` and so on: ``features`` (n, P, V) of n pictures and the stamps of their
                      files, in the order of ``pictures.arrow``
``pictures.arrow``    every file's name and stamp, sorted by name; written when all shards are there
"""

import hashlib
import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_compete.data.aside import written_aside

CACHE = "cache.json"
PICTURES = "pictures.arrow"
OPEN_SHARDS = 64  # a process keeps so many mapped; each is one open file


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What the features of a picture depend on, beside the picture."""

    tower: str  # sha256 of the weights
    vision: Mapping[str, Any]  # VisionConfig.to_dict
    image_processor: Mapping[str, Any]

    def differences(self, checkpoint: "FeatureKey") -> list[str]:
        """Where this key, a cache's, is not that of ``checkpoint``, in words."""
        found = ["the tower's weights"] if self.tower != checkpoint.tower else []
        for name, mine, others in (
            ("vision_config", self.vision, checkpoint.vision),
            ("image_processor", self.image_processor, checkpoint.image_processor),
        ):
            found += [
                f"{name}.{field} (the cache's {mine.get(field)}, the checkpoint's "
                f"{others.get(field)})"
                for field in sorted({*mine, *others})
                if mine.get(field) != others.get(field)
            ]
        return found


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """The content of ``cache.json``."""

    key: FeatureKey
    dtype: str  # float32 or bfloat16: the tower's and the features'
    num_patches: int  # P
    width: int  # V
    num_pictures: int
    pictures: str  # sha256 of the files' sorted names
    shard_size: int  # pictures of a shard; the last has the rest
    versions: Mapping[str, str]  # packages that made it; for the record, not compared

    @classmethod
    def read(cls, folder: Path) -> "CacheInfo":
        """ValueError where ``folder`` holds no cache."""
        file = folder / CACHE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no cached features (no {CACHE}): make them by "
                f"`llava-compete cache-features`"
            )
        values = json.loads(file.read_text())
        if set(values) != {item.name for item in fields(cls)}:
            raise ValueError(f"{file} is not of this version's form: make the features again")
        return cls(**{**values, "key": FeatureKey(**values["key"])})

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache."""
        return -(-self.num_pictures // self.shard_size)

    def shard_pictures(self, shard: int) -> range:
        """The pictures, numbered by name, that lie in that shard."""
        begin = shard * self.shard_size
        return range(begin, min(begin + self.shard_size, self.num_pictures))


class Stamp(NamedTuple):
    """What a picture file was when its features were made."""

    size: int  # bytes
    mtime_ns: int
    sha256: bytes

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """That of the file as it is now, its content read."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, _digest(path))

    def fits(self, path: Path) -> bool:
        """Is the file's content what it was?  Read only where the time of its change differs."""
        stat = path.stat()
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.mtime_ns or _digest(path) == self.sha256


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def shard_file(folder: Path, shard: int) -> Path:
    """Where that shard lies."""
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(folder: Path, shard: int, features_nPV: Tensor, stamps: Sequence[Stamp]) -> None:
    """Write that shard: the features and the files they were made of."""
    tensors = {
        "features": features_nPV,
        "size": torch.tensor([stamp.size for stamp in stamps]),
        "mtime_ns": torch.tensor([stamp.mtime_ns for stamp in stamps]),
        "sha256": torch.tensor([list(stamp.sha256) for stamp in stamps], dtype=torch.uint8),
    }
    with written_aside(shard_file(folder, shard)) as partial:
        save_file(tensors, partial)


def read_stamps(folder: Path, shard: int) -> list[Stamp]:
    """Those of that shard's pictures; SafetensorError where the file is damaged."""
    with safe_open(shard_file(folder, shard), framework="pt") as opened:
        sizes = opened.get_tensor("size").tolist()
        times = opened.get_tensor("mtime_ns").tolist()
        digests = opened.get_tensor("sha256").tolist()
    return [Stamp(*stamp) for stamp in zip(sizes, times, map(bytes, digests), strict=True)]


def write_index(folder: Path, files: pa.Array, *, writer: int = 0) -> None:
    """Write ``pictures.arrow`` from the files' sorted names and the shards' stamps."""
    info = CacheInfo.read(folder)
    stamps = [stamp for shard in range(info.num_shards) for stamp in read_stamps(folder, shard)]
    columns = {name: [getattr(stamp, name) for stamp in stamps] for name in Stamp._fields}
    batch = pa.record_batch({"file": files, **columns})
    with (
        written_aside(folder / PICTURES, writer=writer) as partial,
        pa.ipc.new_file(str(partial), batch.schema) as out,
    ):
        out.write_batch(batch)


class FeatureCache:
    """Features by file name, read from mapped shards; a worker process opens its own.

    ValueError for a folder without a cache or with one that is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = CacheInfo.read(folder)
        if not (folder / PICTURES).is_file():
            made = sum(shard_file(folder, i).is_file() for i in range(self.info.num_shards))
            raise ValueError(
                f"the cached features {folder} are not whole, {made} of {self.info.num_shards} "
                f"shards are there: run `llava-compete cache-features` again, it goes on"
            )
        with pa.memory_map(str(folder / PICTURES)) as source:
            self._pictures = pa.ipc.open_file(source).read_all()
        self._shards: OrderedDict[int, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type["FeatureCache"], tuple[Path]]:
        return FeatureCache, (self.folder,)

    def __len__(self) -> int:
        return self.info.num_pictures

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return getattr(torch, self.info.dtype)

    def check(self, key: FeatureKey) -> None:
        """ValueError where the features are not those of ``key``, a checkpoint's."""
        if found := self.info.key.differences(key):
            raise ValueError(
                f"the cached features {self.folder} are not this checkpoint's; they differ in "
                f"{'; '.join(found)}: run `llava-compete cache-features` with this checkpoint "
                f"into another folder, or train without `features`"
            )

    def empty(self) -> Tensor:
        """(0, P, V): the features of a row without pictures."""
        return torch.empty(0, self.info.num_patches, self.info.width, dtype=self.dtype)

    def features(self, file: str, path: Path) -> Tensor:
        """(P, V) of the picture that rows call ``file`` and that lies at ``path``.

        ValueError where the file is not in the cache or its content has changed since.
        """
        column = self._pictures["file"]
        number = bisect_left(range(len(column)), file, key=lambda i: column[i].as_py())
        if number == len(column) or column[number].as_py() != file:
            raise ValueError(
                f"image {file} is not among the {len(column)} of the cached features "
                f"{self.folder}: run `llava-compete cache-features` with all data files into a "
                f"folder of its own"
            )
        record = self._pictures.slice(number, 1).to_pylist()[0]
        stamp = Stamp(record["size"], record["mtime_ns"], record["sha256"])
        if not stamp.fits(path):
            raise ValueError(
                f"image {path} has changed since its features were made in {self.folder}: run "
                f"`llava-compete cache-features` again with the same arguments; it makes the "
                f"shards of changed pictures anew"
            )
        shard, row = divmod(number, self.info.shard_size)
        # A copy: a view would hold, and hand to another process, the whole mapped shard.
        return self._open(shard).get_slice("features")[row].clone()

    def _open(self, shard: int) -> Any:
        if shard not in self._shards:
            file = shard_file(self.folder, shard)
            try:
                self._shards[shard] = safe_open(file, framework="pt")
            except (FileNotFoundError, SafetensorError) as error:
                raise ValueError(
                    f"{file} of the cached features cannot be read ({error}): remove it and run "
                    f"`llava-compete cache-features` again"
                ) from error
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]
