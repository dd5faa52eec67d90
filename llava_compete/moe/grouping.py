"""Pairs of a token and an expert, put into rows that are grouped by expert.

T tokens, E experts, K chosen per token, N = T*K pairs, R rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# In 16 bits an expert's rows come in multiples of this. Group sizes differ in every call, and for
# a size it has not met oneDNN compiles a kernel at several times the product's cost; of multiples
# there are few. Tensor cores want aligned groups too.
GROUP_ROWS = 32


class Groups(NamedTuple):
    """Where each pair lies. The last row is no pair's, and stands for "no expert"."""

    row_TK: Tensor  # int64; of each pair
    token_R: Tensor  # int64; T where a row is no pair
    ends_E: Tensor  # int32; where each expert's rows end

    def read(self, padded: Tensor, rows: slice) -> Tensor:
        """The tokens of some rows, (R, D); 0 where a row is no pair. See ``padded``."""
        return padded.index_select(0, self.token_R[rows])

    def scatter(self, values_TK: Tensor) -> Tensor:
        """A number of each pair, (R, 1); 0 where a row is no pair."""
        values_R = values_TK.new_zeros(len(self.token_R))
        values_R[self.row_TK.reshape(-1)] = values_TK.reshape(-1)
        values_R[-1] = 0.0
        return values_R[:, None]

    def combine(self, rows_RO: Tensor) -> Tensor:
        """The sum of each token's rows, added in float32, (T, O); overwrites the last row."""
        rows_RO[-1].zero_()
        return F.embedding_bag(self.row_TK, rows_RO, mode="sum")


def padded(x_TD: Tensor) -> Tensor:
    """The tokens and behind them a row of zeros, which rows read that are no pair's."""
    return F.pad(x_TD, (0, 0, 0, 1))


def group_pairs(
    ids_TK: Tensor, num_experts: int, dtype: torch.dtype, most_pairs: int | None = None
) -> Groups:
    """Rows for the pairs of ``ids_TK`` in 0..E, in the order of the tokens in each group.

    An id of E is "no expert". Where no more than ``most_pairs`` of the N pairs have an expert,
    there are rows for these alone. No number passes through the host.
    """
    num_tokens, top_k = ids_TK.shape
    device = ids_TK.device
    num_pairs = ids_TK.numel()
    multiple = _group_rows(num_pairs, dtype, device)
    # At least a block for every expert on a GPU: on some the weight gradient of an empty group is
    # garbage (pytorch issue 172439).
    least = 1 if device.type == "cuda" else 0
    sorted_N, order_N = ids_TK.reshape(-1).sort(stable=True)
    last_E = torch.searchsorted(sorted_N, torch.arange(num_experts, device=device), right=True)
    count_E = last_E.diff(prepend=last_E.new_zeros(1))
    filled_E = (count_E.clamp(min=least) + multiple - 1) // multiple * multiple
    ends_E = filled_E.cumsum(0)
    num_rows = min(num_pairs, num_pairs if most_pairs is None else most_pairs)
    num_rows += num_experts * (multiple - 1 + least) + 1
    shift_E = (ends_E - filled_E) - (last_E - count_E)
    place_N = torch.arange(num_pairs, device=device)
    row_N = place_N + shift_E[sorted_N.clamp(max=num_experts - 1)]
    row_N = row_N.where(sorted_N < num_experts, num_rows - 1)
    token_R = order_N.new_full((num_rows,), num_tokens)
    token_R[row_N] = order_N.div(top_k, rounding_mode="floor")
    token_R[-1] = num_tokens
    row_TK = torch.empty_like(row_N).scatter_(0, order_N, row_N).view(num_tokens, top_k)
    return Groups(row_TK, token_R, ends_E.to(torch.int32))


def _group_rows(num_pairs: int, dtype: torch.dtype, device: torch.device) -> int:
    if device.type == "cuda":
        return GROUP_ROWS
    if dtype.itemsize > 2:
        return 1
    # Of a decoding step's few pairs no group is longer than all of them.
    return min(GROUP_ROWS, 1 << max(num_pairs - 1, 0).bit_length())
