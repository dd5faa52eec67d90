"""LLaVA rows -> messages -> tensors; the only place that makes labels.

B batch, N images in the batch, L sequence, H and W pixels.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_compete.processor import IMAGE_TOKEN, Message, count_images, with_images

IGNORED = -100  # the label of a position that is not answered

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    """A LLaVA row's ``conversations`` as chat messages; ValueError names the row and the fault."""
    name = row.get("id", "without id")
    turns = row.get("conversations")
    if not turns:
        raise ValueError(f"sample {name}: no conversations")
    messages: list[Message] = []
    for turn in turns:
        if turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"sample {name}: a turn needs 'from' (one of {sorted(ROLES)}) and 'value' (text), "
                f"got {turn}"
            )
        messages.append({"role": ROLES[turn["from"]], "content": _content(turn["value"])})
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise ValueError(f"sample {name}: human and gpt must alternate, human first; got {spoken}")
    files = image_files(row)
    if (wanted := count_images(messages)) != len(files):
        raise ValueError(f"sample {name}: {wanted} {IMAGE_TOKEN} in the text, images: {files}")
    return messages


def image_files(row: Mapping[str, Any]) -> list[str]:
    """The row's image files: ``image`` is absent, one name or a list of names."""
    image = row.get("image")
    if image is None:
        return []
    return [image] if isinstance(image, str) else list(image)


def _content(text: str) -> list[dict[str, str]]:
    """Text pieces with image items between; the template writes the line break after an image.

    A turn's only image comes first wherever it stood, as in LLaVA and as in evaluation.
    """
    if text.count(IMAGE_TOKEN) == 1:
        question = text.replace(IMAGE_TOKEN, "").strip()
        image = {"type": "image"}
        return [image, {"type": "text", "text": question}] if question else [image]
    items: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        if index:
            items.append({"type": "image"})
        if piece := piece.strip("\n"):
            items.append({"type": "text", "text": piece})
    return items


def find_image(root: Path, file: str, sample: str) -> Path:
    """``root/file``; ValueError naming the sample where it does not exist or leaves ``root``."""
    path = root / file
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"sample {sample}: image {file} lies outside the image folder {root} "
            f"(links are followed: give the folder that really holds the images)"
        )
    if not path.is_file():
        raise ValueError(f"sample {sample}: image {path} does not exist")
    return path


def open_image(root: Path, file: str, sample: str) -> Image.Image:
    """Decode ``root/file`` to RGB; ValueError naming the sample where it cannot be had."""
    path = find_image(root, file, sample)
    try:
        with Image.open(path) as image:
            return _on_white(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's all three
        raise ValueError(f"sample {sample}: image {path} cannot be read: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # A cut-out on convert("RGB") would stand before whatever colour its hidden pixels have.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def encode(
    processor: LlavaProcessor,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """One conversation as ``input_ids`` and ``labels`` int64 (L,), ``pixel_values`` (N, 3, H, W).

    Labels are the ids inside the template's generation blocks, everything else is IGNORED. A
    conversation longer than ``max_length`` loses whole turns from its end, and a first turn that
    is still too long the end of its answer. ValueError where that would cut an image or leave no
    answer at all.
    """
    kept = list(messages)
    while True:
        encoded = _encode_whole(processor, kept, images)
        length = encoded["input_ids"].numel()
        if max_length is None or length <= max_length:
            return encoded
        if sum(message["role"] == "user" for message in kept) == 1:
            is_image = encoded["input_ids"] == processor.image_token_id
            answered = encoded["labels"][:max_length] != IGNORED
            if answered.any() and not is_image[max_length:].any():
                shorter = {name: encoded[name][:max_length] for name in ("input_ids", "labels")}
                return {**encoded, **shorter}
            placeholders = int(is_image.sum())
            raise ValueError(
                f"the first turn needs {length} tokens, {placeholders} of them image tokens, but "
                f"max_length={max_length} would cut an image or leave no answer: raise max_length "
                f"or drop the sample"
            )
        kept = kept[:-2]
        images = images[: count_images(kept)]


def _encode_whole(
    processor: LlavaProcessor, messages: Sequence[Message], images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    rendered = processor.apply_chat_template(
        [with_images(messages, images)],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )
    input_ids = torch.tensor(rendered["input_ids"][0])
    answered = torch.tensor(rendered["assistant_masks"][0], dtype=torch.bool)
    encoded = {"input_ids": input_ids, "labels": input_ids.masked_fill(~answered, IGNORED)}
    if images:
        encoded["pixel_values"] = torch.stack(
            [torch.as_tensor(p) for p in rendered["pixel_values"]]
        )
    return encoded


class Collator:
    """Encoded conversations -> one right-padded batch; text-only ones may stand beside others."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` int64 (B, L); ``pixel_values`` (N,3,H,W).

        ``pixel_values`` is absent where no sample has a picture.
        """
        batch = {
            "input_ids": _pad([s["input_ids"] for s in samples], self.pad_token_id),
            "attention_mask": _pad([torch.ones_like(s["input_ids"]) for s in samples], 0),
            "labels": _pad([s["labels"] for s in samples], IGNORED),
        }
        pixels = [s["pixel_values"] for s in samples if "pixel_values" in s]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        return batch


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


class LlavaDataset(Dataset):
    """Rows of a LLaVA ``.json`` (a list) or ``.jsonl`` file, encoded when asked for.

    The rows lie in one byte buffer, not in Python objects: data-loader workers that are forked
    from this process share it instead of copying it page by page as reference counts change.
    """

    def __init__(
        self, file: Path, image_root: Path, processor: LlavaProcessor, max_length: int | None = None
    ) -> None:
        self.file = file
        self.image_root = image_root
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
                find_image(self.image_root, file, str(row.get("id", f"number {index}")))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.row(index)
        name = str(row.get("id", f"number {index}"))
        messages = to_messages(row)
        images = [open_image(self.image_root, file, name) for file in image_files(row)]
        try:
            return encode(self.processor, messages, images, self.max_length)
        except ValueError as error:
            raise ValueError(f"sample {name} of {self.file}: {error}") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a LLaVA JSON or JSONL file; ValueError naming the line of a broken one."""
    if not file.is_file():
        raise ValueError(f"data file {file} does not exist")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                rows.append(_parse(line, f"{file} line {number}"))
    else:
        rows = _parse(text, str(file))
        if not isinstance(rows, list):
            raise ValueError(
                f"{file}: a LLaVA file is a JSON list of rows, found {type(rows).__name__}"
            )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}: row {number} must be an object, found {row!r:.80}")
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
