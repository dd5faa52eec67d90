"""The data path this one is measured against: what a plain LLaVA-style trainer does for a sample.

Written from its description: a list of dictionaries, Pillow for the whole picture, a square canvas,
a bicubic resize, numpy for the rest, and text tokenised once whole and once more for each turn, to
find out which tokens are the answers'.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from llava_compete.data import IGNORED
from llava_compete.processor import IMAGE_TOKEN

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class ListOfDicts(Dataset):
    """All rows as Python objects in memory; a sample as ``LlavaDataset`` gives it."""

    def __init__(self, file: Path, image_root: Path, processor: LlavaProcessor) -> None:
        self.rows = json.loads(file.read_text())
        self.image_root = image_root
        self.tokenizer = processor.tokenizer
        image = processor.image_processor
        self.side = image.size["height"]
        self.mean, self.std = np.array(image.image_mean), np.array(image.image_std)
        self.placeholders = (self.side // processor.patch_size) ** 2

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Any]:
        """A copy, as the trainer changes its rows in place."""
        return copy.deepcopy(self.rows[index])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.row(index)
        ids, labels = self._tokenise(row["conversations"])
        sample = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        if "image" in row:
            picture = Image.open(self.image_root / row["image"]).convert("RGB")
            sample["pixel_values"] = self._preprocess(picture)[None]
        return sample

    def _tokenise(self, turns: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        prompt, rounds = "", []
        for human, gpt in zip(turns[::2], turns[1::2], strict=True):
            question = human["value"].replace(IMAGE_TOKEN, IMAGE_TOKEN * self.placeholders)
            rounds.append((TURN.format(question), f"{gpt['value']}<|im_end|>"))
            prompt += "".join(rounds[-1]) + "\n"
        ids = self.tokenizer(prompt).input_ids
        labels = [IGNORED] * len(ids)
        end = 0
        for question, answer in rounds:
            begin = end + len(self.tokenizer(question).input_ids)
            end = begin + len(self.tokenizer(answer).input_ids)
            labels[begin:end] = ids[begin:end]
            end += 1  # the line break
        return ids, labels

    def _preprocess(self, picture: Image.Image) -> Tensor:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in self.mean))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        small = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        scaled = (np.asarray(small) * (1 / 255) - self.mean) / self.std
        return torch.from_numpy(scaled.transpose(2, 0, 1).astype(np.float32))
