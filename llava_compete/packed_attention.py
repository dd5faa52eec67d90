"""Attention of packed batches without a mask: each row by itself.

B sequences of L tokens that hold packed rows, H heads, D numbers a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED_SDPA = "packed_sdpa"  # an attn_implementation


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row; ``query``, ``key``, ``value`` (B, H, L, D).

    ``row_lengths``, of the rows and the padding that follow each other in the B*L tokens, comes
    from the model's ``packing``. The work grows with the squares of these lengths, where sdpa with
    a mask grows with that of L. Returns (B, L, H, D).
    """
    if row_lengths is None:
        raise ValueError(f"attn_implementation={PACKED_SDPA!r} is for packed batches; use 'sdpa'")
    outputs = []
    # Split, not sliced: each slice's backward would fill a tensor of the whole batch.
    rows = zip(*(_by_row(x, row_lengths) for x in (query, key, value)), strict=True)
    for row_length, of_row in zip(row_lengths, rows, strict=True):
        mask_SS = None
        if sliding_window is not None and row_length > sliding_window:
            mask_SS = _window(row_length, sliding_window, query.device)
        outputs.append(
            sdpa_attention_forward(module, *of_row, mask_SS, is_causal=mask_SS is None, **kwargs)[0]
        )
    num_sequences, _, length, _ = query.shape
    return torch.cat(outputs, dim=1).view(num_sequences, length, *outputs[0].shape[2:]), None


def _by_row(x: Tensor, row_lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """(B, H, L, D) -> (1, H, S, D) of each row of S tokens."""
    return x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None].split(list(row_lengths), dim=2)


def _window(length: int, window: int, device: torch.device) -> Tensor:
    """Who sees whom in a row: the last ``window`` tokens, itself included. bool (1, 1, S, S)."""
    place_S = torch.arange(length, device=device)
    behind_SS = place_S[:, None] - place_S
    return ((behind_SS >= 0) & (behind_SS < window))[None, None]


# Without a mask function of this name transformers makes no mask.
AttentionInterface.register(PACKED_SDPA, packed_sdpa)
