"""Rows of a data file, encoded when asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_compete.data.encode import encode
from llava_compete.data.files import read_rows
from llava_compete.data.images import ImageFolder
from llava_compete.data.rows import image_files, to_messages


class LlavaDataset(Dataset):
    """Rows of a LLaVA ``.json`` (a list) or ``.jsonl`` file, encoded when asked for.

    The rows lie in one byte buffer, not in Python objects: data-loader workers that are forked
    from this process share it instead of copying it page by page as reference counts change.
    """

    def __init__(
        self, file: Path, image_root: Path, processor: LlavaProcessor, max_length: int | None = None
    ) -> None:
        self.file = file
        self.images = ImageFolder(image_root)
        self.processor = processor
        self.max_length = max_length
        encoded = [json.dumps(row).encode() for row in read_rows(file)]
        if not encoded:
            raise ValueError(f"{file} holds no rows")
        self._ends = np.cumsum([len(row) for row in encoded])
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def row(self, index: int) -> dict[str, Any]:
        """The row as it stands in the file."""
        begin = self._ends[index - 1] if index else 0
        return json.loads(self._bytes[begin : self._ends[index]].tobytes())

    def check(self) -> None:
        """ValueError for the first row that cannot be used: its turns, or an image not there.

        Pictures are found, not decoded; one that is damaged is named when it is drawn.
        """
        for index in tqdm(range(len(self)), desc=f"checking {self.file.name}", disable=None):
            row = self.row(index)
            to_messages(row)
            for file in image_files(row):
                self.images.find(file, str(row.get("id", f"number {index}")))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.row(index)
        name = str(row.get("id", f"number {index}"))
        messages = to_messages(row)
        images = [self.images.open(file, name) for file in image_files(row)]
        try:
            return encode(self.processor, messages, images, self.max_length)
        except ValueError as error:
            raise ValueError(f"sample {name} of {self.file}: {error}") from error
