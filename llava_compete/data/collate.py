"""Encoded conversations -> one batch.

B sequences, R rows packed into them, N images in the batch, L sequence, H and W pixels, P patches
an image of V numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaProcessor

from llava_compete.data.encode import IGNORED

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Packing:
    """Where rows, and the padding behind them, lie in the sequences of a packed batch.

    ``starts_Q`` is what flash attention calls cu_seq_lens. No NamedTuple: transformers' Trainer
    makes the tuples of a batch anew in a way that a NamedTuple does not take.
    """

    position_ids: Tensor  # int64 (B, L); 0 where a row, or the padding of a sequence, begins
    starts_Q: Tensor  # int32 (R + paddings + 1,): their beginnings in the B*L tokens, and B*L
    lengths: tuple[int, ...]  # theirs, known to the host

    @property
    def longest(self) -> int:
        """Tokens of the longest of them."""
        return max(self.lengths)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Packing":
        """The same with its tensors on ``device``; the loader calls it."""
        position_ids = self.position_ids.to(device, non_blocking=non_blocking)
        return Packing(
            position_ids, self.starts_Q.to(device, non_blocking=non_blocking), self.lengths
        )

    def pin_memory(self) -> "Packing":
        """The same with its tensors in pinned memory; the loader calls it."""
        return Packing(self.position_ids.pin_memory(), self.starts_Q.pin_memory(), self.lengths)


class Collator:
    """Encoded conversations -> one right-padded batch; text-only ones may stand beside others.

    A list of conversations in place of one is packed into one sequence.
    """

    def __init__(self, processor: LlavaProcessor) -> None:
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: Sequence[Sample | Sequence[Sample]]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask``, ``labels`` int64 (B, L); ``pixel_values`` (N,3,H,W).

        Of samples with cached features ``image_features`` (N, P, V) stand for ``pixel_values``.
        Where several of their N images are of one file, each file's picture is there once, and
        ``image_index`` int64 (N,) says which of them each image is.
        ``packing`` is there for packs, ``skipped`` where a row was replaced by another. What no
        sample has is absent.
        """
        packed = isinstance(samples[0], Sequence)
        packs = [_as_pack(sample, packed=packed) for sample in samples]
        rows = [row for pack in packs for row in pack]
        ids = [torch.cat([row["input_ids"] for row in pack]) for pack in packs]
        labels = [torch.cat([row["labels"] for row in pack]) for pack in packs]
        batch: dict[str, Any] = {
            "input_ids": _pad(ids, self.pad_token_id),
            "attention_mask": _pad([torch.ones_like(sequence) for sequence in ids], 0),
            "labels": _pad(labels, IGNORED),
        }
        if packed:
            lengths = [[len(row["input_ids"]) for row in pack] for pack in packs]
            batch["packing"] = lay_out(lengths)
        for name in ("pixel_values", "image_features"):
            if found := [row for row in rows if name in row]:
                batch |= _pictures(found, name)
        if skipped := [record for row in rows for record in row.get("skipped", ())]:
            batch["skipped"] = skipped
        return batch


def _pictures(rows: Sequence[Sample], name: str) -> dict[str, Tensor]:
    values = torch.cat([row[name] for row in rows])
    if not all("image_files" in row for row in rows):  # encoded by hand
        return {name: values}
    files = [file for row in rows for file in row["image_files"]]
    assert len(files) == len(values)
    first: dict[str, int] = {}
    for place, file in enumerate(files):
        first.setdefault(file, place)
    if len(first) == len(files):
        return {name: values}
    order = {file: number for number, file in enumerate(first)}
    return {
        name: values[list(first.values())],
        "image_index": torch.tensor([order[file] for file in files]),
    }


def lay_out(lengths: Sequence[Sequence[int]]) -> Packing:
    """The Packing of sequences whose rows have these ``lengths``, in their order."""
    longest = max(sum(pack) for pack in lengths)
    segments = [
        [*pack, longest - sum(pack)] if sum(pack) < longest else list(pack) for pack in lengths
    ]
    flat = torch.tensor([length for pack in segments for length in pack])
    starts_Q = torch.cat([flat.new_zeros(1), flat.cumsum(0)])
    begins_T = starts_Q[:-1].repeat_interleave(flat)
    position_T = torch.arange(len(begins_T)) - begins_T
    return Packing(position_T.view(len(lengths), longest), starts_Q.int(), tuple(flat.tolist()))


def _as_pack(sample: Sample | Sequence[Sample], *, packed: bool) -> Sequence[Sample]:
    if isinstance(sample, Sequence) != packed:
        raise TypeError("a batch is of conversations or of packs of them, not of both")
    return sample if isinstance(sample, Sequence) else [sample]


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
