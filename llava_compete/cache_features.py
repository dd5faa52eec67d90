"""Run a checkpoint's frozen image tower once over the pictures of data files, keep the features.

P patches a picture, V feature width, n pictures of a shard.

Processes share the work without a word to each other: each makes every world_size-th shard, always
in the same batches, and the last to end writes ``pictures.arrow`` (data/features.py has the form).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava_compete.checkpoint import refuse_non_empty
from llava_compete.data import ImageFolder, image_files, read_exclusions, read_rows
from llava_compete.data.aside import written_aside
from llava_compete.data.features import (
    CACHE,
    PICTURES,
    CacheInfo,
    FeatureCache,
    Stamp,
    read_stamps,
    shard_file,
    write_index,
    write_shard,
)
from llava_compete.data.images import picture_side
from llava_compete.data.rows import row_name
from llava_compete.tower import Tower, load_tower
from llava_compete.vision import ImageTower

SHARD_SIZE = 512  # pictures; one shard of each process lies in memory, twice while it is written
PACKAGES = ("torch", "torchvision", "transformers", "open_clip_torch", "timm", "pillow")


class Pictures(Dataset):
    """Every distinct image file of data files, by name; opened when asked for."""

    def __init__(self, firsts: Mapping[str, str], images: ImageFolder, tower: Tower) -> None:
        """``firsts``: the files, each with the row that first names it, for an error to name."""
        # Arrow, not lists: data-loader workers share it as it lies.
        self.files = pa.array(sorted(firsts))
        self.samples = pa.array([firsts[file] for file in sorted(firsts)])
        self.images = images
        self.image_processor = tower.processor.image_processor
        self.side = picture_side(tower.processor)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> Path:
        """Where the file lies; ValueError naming its row where it does not."""
        return self.images.find(self.files[number].as_py(), self.samples[number].as_py())

    def __getitem__(self, number: int) -> tuple[Tensor, Stamp] | ValueError:
        """Pixels (3, H, W) and the file's stamp, or what is wrong with it.

        Returned, not raised: a worker would wrap the message into its traceback.
        """
        try:
            stamp = Stamp.of(self.path(number))
            picture = self.images.open(
                self.files[number].as_py(), self.samples[number].as_py(), self.side
            )
        except ValueError as error:
            return error
        pixels = self.image_processor(picture, return_tensors="pt")["pixel_values"]
        return pixels[0], stamp


class _Batch(NamedTuple):
    pixels_N3HW: Tensor
    stamps: list[Stamp]


def _collate(items: Sequence[tuple[Tensor, Stamp] | ValueError]) -> _Batch | ValueError:
    pictures = []
    for item in items:
        if isinstance(item, ValueError):
            return item
        pictures.append(item)
    return _Batch(torch.stack([pixels for pixels, _ in pictures]), [stamp for _, stamp in pictures])


def list_files(data: Sequence[Path], exclude: Sequence[Path] = ()) -> dict[str, str]:
    """Every distinct image file of the rows, with the name of the row that has it first."""
    if exclude and len(exclude) != len(data):
        raise ValueError(
            f"{len(exclude)} exclusion files for {len(data)} data files: give one for each, in "
            f"the same order"
        )
    excluded = [
        {e.row for e in read_exclusions(*pair)} for pair in zip(exclude, data, strict=False)
    ]
    firsts: dict[str, str] = {}
    for place, file in enumerate(data):
        left_out = excluded[place] if exclude else set()
        for number, row in enumerate(tqdm(read_rows(file), desc=file.name, disable=None)):
            if number not in left_out:
                sample = row_name(row, number)
                for name in image_files(row, sample):
                    firsts.setdefault(name, sample)
    if not firsts:
        raise ValueError(f"{', '.join(map(str, data))}: no row has a picture")
    return firsts


def cache_features(
    checkpoint: Path,
    data: Sequence[Path],
    image_folder: Path,
    output: Path,
    *,
    linked_folders: Sequence[Path] = (),
    exclude: Sequence[Path] = (),
    batch_size: int = 32,
    dtype: str = "float32",
    num_workers: int = 4,
    shard_size: int = SHARD_SIZE,
    rank: int = 0,
    world_size: int = 1,
) -> FeatureCache | None:
    """Fill ``output``; the cache, or None where other processes are still at their shards.

    A shard that is whole and whose pictures have not changed stays as it is, so a run that was
    killed goes on. ValueError where ``output`` holds another cache or something else, where the
    disk is too small, and for the first picture that cannot be read.
    """
    tower = load_tower(checkpoint)
    images = ImageFolder(image_folder, linked_folders)
    pictures = Pictures(list_files(data, exclude), images, tower)
    info = _describe(tower, pictures, dtype, shard_size)
    refuse_other(output, info)
    quiet = rank > 0  # one process's bars are enough
    for number in tqdm(range(len(pictures)), desc="pictures found", disable=quiet or None):
        pictures.path(number)  # a missing one is named before hours of work, not after
    pending = pending_shards(output, info, pictures)
    if pending:
        check_free_disk(info, pending, output)
        _begin(output, info, rank)
    own = [shard for shard in pending if shard % world_size == rank]
    if own:
        loader = _loader(own, info, pictures, batch_size, num_workers)
        make_shards(own, tower.model, loader, output, quiet=quiet)
    if pending_shards(output, info, pictures):
        return None
    write_index(output, pictures.files, writer=rank)
    return FeatureCache(output)


def _describe(tower: Tower, pictures: Pictures, dtype: str, shard_size: int) -> CacheInfo:
    names = json.dumps(pictures.files.to_pylist())
    return CacheInfo(
        key=tower.key,
        dtype=dtype,
        num_patches=tower.model.config.num_patches,
        width=tower.model.config.width,
        num_pictures=len(pictures),
        pictures=hashlib.sha256(names.encode()).hexdigest(),
        shard_size=shard_size,
        versions={package: version(package) for package in PACKAGES},
    )


def refuse_other(output: Path, info: CacheInfo) -> None:
    """ValueError where ``output`` holds something else than this cache, whole or in part."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if CACHE not in names:
        if any(not name.startswith(f".{CACHE}") for name in names):  # another process's is no fault
            refuse_non_empty(output)
        return
    begun = CacheInfo.read(output)
    differing = begun.key.differences(info.key) + [
        f"{name} (the cache's {getattr(begun, name)}, asked for {getattr(info, name)})"
        for name in ("dtype", "shard_size", "num_pictures")
        if getattr(begun, name) != getattr(info, name)
    ]
    if not differing and begun.pictures != info.pictures:
        differing = ["the pictures' names"]
    if differing:
        raise ValueError(
            f"output {output} holds other cached features, which differ in "
            f"{'; '.join(differing)}: name another folder or remove it"
        )


def _begin(output: Path, info: CacheInfo, rank: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / PICTURES).unlink(missing_ok=True)  # until it is true again
    if not (output / CACHE).is_file():
        with written_aside(output / CACHE, writer=rank) as partial:
            partial.write_text(info.to_json())


def pending_shards(output: Path, info: CacheInfo, pictures: Pictures) -> list[int]:
    """The shards that are not there, are damaged, or have a picture that has changed since."""
    return [
        shard for shard in range(info.num_shards) if not _is_whole(output, shard, info, pictures)
    ]


def _is_whole(output: Path, shard: int, info: CacheInfo, pictures: Pictures) -> bool:
    if not shard_file(output, shard).is_file():
        return False
    try:
        stamps = read_stamps(output, shard)
    except SafetensorError:
        return False
    numbers = info.shard_pictures(shard)
    return all(s.fits(pictures.path(n)) for n, s in zip(numbers, stamps, strict=True))


def check_free_disk(info: CacheInfo, shards: Sequence[int], output: Path) -> None:
    """ValueError where the features of those shards need more than the disk has."""
    count = sum(len(info.shard_pictures(shard)) for shard in shards)
    size = getattr(torch, info.dtype).itemsize
    needed = count * info.num_patches * info.width * size
    there = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"the features of {count:,} pictures need {needed / 1e9:,.1f} GB ({count:,} x "
            f"{info.num_patches} patches x {info.width} x {size} bytes), the disk of {output} has "
            f"{free / 1e9:,.1f} GB free: name a larger one"
            f"{', or halve the need by dtype bfloat16' if size == 4 else ''}"
        )


def _loader(
    shards: Sequence[int], info: CacheInfo, pictures: Pictures, batch_size: int, num_workers: int
) -> DataLoader:
    """The pictures of those shards in batches, none of which has pictures of two shards.

    So a shard's numbers are the same whatever was made before it, and by whom.
    """
    batches = [
        list(info.shard_pictures(shard)[begin : begin + batch_size])
        for shard in shards
        for begin in range(0, len(info.shard_pictures(shard)), batch_size)
    ]
    return DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


@torch.inference_mode()
def make_shards(
    shards: Sequence[int], model: ImageTower, loader: DataLoader, output: Path, *, quiet: bool
) -> None:
    """Run the tower over the pictures of those shards; each appears when it is whole."""
    info = CacheInfo.read(output)
    device, dtype = _device(), getattr(torch, info.dtype)
    model = model.to(device, dtype)
    loaded = iter(loader)
    total = sum(len(info.shard_pictures(shard)) for shard in shards)
    with tqdm(total=total, desc="pictures", disable=quiet or None) as bar:
        for shard in shards:
            count = len(info.shard_pictures(shard))
            features_nPV = torch.empty(count, info.num_patches, info.width, dtype=dtype)
            stamps: list[Stamp] = []
            while len(stamps) < count:
                batch = next(loaded)
                if isinstance(batch, ValueError):
                    raise batch
                made = slice(len(stamps), len(stamps) + len(batch.stamps))
                features_nPV[made] = model(batch.pixels_N3HW.to(device, dtype)).cpu()
                stamps += batch.stamps
                bar.update(len(batch.stamps))
            write_shard(output, shard, features_nPV, stamps)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
