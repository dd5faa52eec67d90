"""A training step of a small language model with experts, on batches of given lengths.

B sequences, L tokens of each.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import LlamaConfig

from llava_compete import LlavaCompeteForConditionalGeneration as Model
from llava_compete import MoEConfig
from llava_compete.data import IGNORED
from llava_compete.data.batches import Batches
from llava_compete.data.collate import lay_out
from llava_compete.model import LlavaCompeteConfig
from llava_compete.packed_attention import PACKED_SDPA
from llava_compete.vision import describe_tower

VOCABULARY = 4096
ANSWERED = 5  # of LLaVA's tokens about one in five is an answer's


def build_model(*, packed: bool) -> Model:
    """2 layers of width 256 with 4 experts of 704, 2 for a token; float32, to be trained whole."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    config = LlavaCompeteConfig(
        text_config=text,
        vision_config=describe_tower("timm/test_vit", -2, image_size=32).to_dict(),
        moe={"language_model": MoEConfig(num_experts=4, top_k=2, router="compete").to_dict()},
    )
    model = Model(config).train()
    model.language_model.set_attn_implementation(PACKED_SDPA if packed else "sdpa")
    return model


def fill_budget(batches: Batches, lengths: NDArray[Any], budget: int) -> Iterator[list[list[int]]]:
    """Lengths of the sequences of each batch: as many as keep it, padding and all, in ``budget``.

    A sequence is what ``batches`` give in their order, a row or a pack of rows.
    """
    kept: list[list[int]] = []
    for unit in itertools.chain.from_iterable(batches):
        sequence = [int(lengths[row]) for row in (unit if isinstance(unit, tuple) else (unit,))]
        longest = max(map(sum, [*kept, sequence]))
        if longest * (len(kept) + 1) > budget:
            yield kept
            kept = []
        kept.append(sequence)


class StepTimer:
    """Called: takes the next batch through forward and backward; real tokens per second."""

    def __init__(self, model: Model, batches: Iterator[list[list[int]]], *, packed: bool) -> None:
        self.model = model
        self.batches = batches
        self.packed = packed

    def __call__(self) -> float:
        batch = random_batch(next(self.batches), packed=self.packed)
        begin = time.perf_counter()
        self.model(**batch).loss.backward()
        seconds = time.perf_counter() - begin
        self.model.zero_grad(set_to_none=True)
        return int(batch["attention_mask"].sum()) / seconds


def random_batch(lengths: Sequence[Sequence[int]], *, packed: bool) -> dict[str, Any]:
    """Text of these lengths, right padded, with answers at the end of each stretch of tokens."""
    totals = torch.tensor([sum(pack) for pack in lengths])
    place_L = torch.arange(int(totals.max()))
    real_BL = place_L < totals[:, None]
    ids_BL = torch.randint(VOCABULARY, real_BL.shape)
    answered_BL = real_BL & (place_L % (10 * ANSWERED) >= 10 * (ANSWERED - 1))
    batch: dict[str, Any] = {
        "input_ids": ids_BL,
        "attention_mask": real_BL.long(),
        "labels": ids_BL.masked_fill(~answered_BL, IGNORED),
    }
    if packed:
        batch["packing"] = lay_out(lengths)
    return batch
