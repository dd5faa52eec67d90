"""Rows of a data file, encoded when asked for.

N rows that can be used.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_compete.data.encode import to_pixels, tokenise
from llava_compete.data.features import FeatureCache
from llava_compete.data.images import ImageFolder, picture_side
from llava_compete.data.rows import image_files, row_name, source_of, to_messages
from llava_compete.data.table import RowTable
from llava_compete.names import nearest

BROKEN_IMAGES = ("error", "skip")
MAX_MISSING = 1000  # images that are not there are counted no further
MAX_TRIES = 100  # rows in a row whose images are broken: then it is the folder, not the images

Sample = dict[str, Any]


class LlavaDataset(Dataset):
    """N rows of a LLaVA ``.json``, ``.jsonl`` or ``.parquet`` file, encoded when asked for.

    ``dataset[i]`` is a sample: ``input_ids`` and ``labels`` int64 (L,), ``image_files`` the names
    of its pictures, ``pixel_values`` (images, 3, H, W) where it has any; ``dataset[i, j, k]`` is
    the list of three. The rows lie in a mapped file that all processes share (RowTable), without
    those that the ``exclude`` file names.

    ``broken_images`` says what an image does that is missing or cannot be decoded. ``error``:
    ValueError. ``skip``: the row of nearest length that is not longer takes the place (where there
    is none, the next longer one), so that a batch or a pack is no larger for it, and the sample has
    ``skipped``: [{"row", "id", "reason", "replaced_by"}], rows by their number in the file. Rows of
    which ``max_length`` would leave no answer, or part of an image, are a ValueError here, or with
    ``skip`` left out and counted.

    With ``features`` a sample has ``image_features`` (images, P, V), cached ones of a frozen tower,
    in place of ``pixel_values``, and no picture is opened.
    """

    def __init__(
        self,
        file: Path,
        image_root: Path,
        processor: LlavaProcessor,
        max_length: int | None = None,
        *,
        linked_folders: tuple[Path, ...] = (),
        exclude: Path | None = None,
        broken_images: str = "error",
        features: FeatureCache | None = None,
    ) -> None:
        if broken_images not in BROKEN_IMAGES:
            known = nearest(broken_images, BROKEN_IMAGES)
            raise ValueError(f"broken_images={broken_images!r} is not known{known}")
        self.file = file
        self.images = ImageFolder(image_root, linked_folders)
        self.processor = processor
        self.max_length = max_length
        self.broken_images = broken_images
        self.features = features
        self.table = RowTable.open(file, processor, max_length, exclude=exclude)
        refused = self.table.left_out.refused.total()
        if refused and broken_images == "error":
            raise ValueError(
                f"{refused} of {refused + len(self.table)} rows of {file} are too long, the first "
                f"are:\n" + "\n".join(self.table.left_out.first_refused) + "\nRaise max_length, "
                "exclude the rows, or leave them out by broken_images=skip"
            )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(N,) tokens of each row, image tokens included, after max_length."""
        return self.table.lengths

    def row(self, index: int) -> dict[str, Any]:
        """The row as it stands in the file."""
        return self.table.row(index)

    def check(self) -> Counter[str]:
        """Rows by source that have an image which is not there.

        With ``error`` there are none: ValueError names the first and says how many more there are.
        Pictures are found, not decoded; a damaged one shows when it is drawn.
        """
        missing: Counter[str] = Counter()
        first = None
        for index in tqdm(range(len(self)), desc=f"checking {self.file.name}", disable=None):
            row = self.row(index)
            try:
                for file in image_files(row):
                    self.images.find(file, row_name(row, self.table.number(index)))
            except ValueError as error:
                first = first or str(error)
                missing[source_of(row)] += 1
                if self.broken_images == "error" and missing.total() > MAX_MISSING:
                    break
        if first is not None and self.broken_images == "error":
            raise ValueError(f"{first}{_and_more(missing.total() - 1)}")
        return missing

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: tuple[int, ...]) -> list[Sample]: ...

    def __getitem__(self, index: int | tuple[int, ...]) -> Sample | list[Sample]:
        if isinstance(index, tuple):
            return [self._sample(one) for one in index]
        return self._sample(index)

    def _sample(self, index: int) -> Sample:
        if self.broken_images == "error":
            return self._encode(index)
        faults: list[str] = []
        for tried in self._nearest(index):
            try:
                sample = self._encode(tried)
            except BrokenImageError as error:
                faults.append(str(error))
                continue
            if faults:
                number = self.table.number(index)
                record = {"row": number, "id": row_name(self.row(index), number)}
                record |= {"reason": faults[0], "replaced_by": self.table.number(tried)}
                sample["skipped"] = [record]
            return sample
        raise ValueError(
            f"{self.file}: none of {len(faults)} rows tried one after the other has its images: is "
            f"{self.images.root} still there? The last: {faults[-1]}"
        )

    def _nearest(self, index: int) -> Iterator[int]:
        """``index``, then the rows that may stand for it, MAX_TRIES in all."""
        yield index
        order_N = np.argsort(self.lengths, kind="stable")
        place = int(np.flatnonzero(order_N == index)[0])
        others = np.concatenate([order_N[:place][::-1], order_N[place + 1 :]])
        yield from others[: MAX_TRIES - 1].tolist()

    def _encode(self, index: int) -> Sample:
        row = self.row(index)
        name = row_name(row, self.table.number(index))
        tokens = tokenise(self.processor, to_messages(row, name), self.max_length)
        sample: Sample = {"input_ids": tokens.input_ids, "labels": tokens.labels}
        files = image_files(row)[: tokens.num_images]
        sample["image_files"] = files
        if self.features is not None:
            sample["image_features"] = self._features(files, name)
        elif files:
            side = picture_side(self.processor)
            pictures = [self._open(file, name, side) for file in files]
            sample["pixel_values"] = to_pixels(self.processor, pictures)
        return sample

    def _open(self, file: str, name: str, side: int) -> Image.Image:
        try:
            return self.images.open(file, name, side)
        except ValueError as error:
            raise BrokenImageError(str(error)) from error

    def _features(self, files: list[str], name: str) -> torch.Tensor:
        assert self.features is not None
        found = []
        for file in files:
            try:
                path = self.images.find(file, name)
            except ValueError as error:
                raise BrokenImageError(str(error)) from error
            found.append(self.features.features(file, path))
        return torch.stack(found) if found else self.features.empty()


class BrokenImageError(ValueError):
    """An image that is missing or cannot be decoded."""


def _and_more(count: int) -> str:
    if not count:
        return ""
    rows = f"{count} more rows" if count < MAX_MISSING else f"at least {count} more rows"
    return (
        f"; {rows} lack an image: `python -m data_prep check --drop` lists them all in an "
        f"exclusion file, broken_images=skip draws other rows in their place"
    )
