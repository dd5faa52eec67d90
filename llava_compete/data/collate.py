"""Encoded conversations -> one batch.

B batch, N images in the batch, L sequence, H and W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlavaProcessor

from llava_compete.data.encode import IGNORED


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
