"""Matrix products of rows that are grouped by expert, each group with its expert's matrix.

R rows, E experts, I width in, O width out. Group e is the rows from ``ends_E[e - 1]`` (0 for the
first) to ``ends_E[e]``; rows behind the last group are no one's: they are not read, and of an
output not written.

On a GPU these are torch's grouped products, and no number passes through the host. On a CPU they
are a loop over contiguous slices, which a grouped call does not beat (docs/performance.md).
Operators of their own, so that torch.compile and tensors without data take them as they are.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("llava_compete::grouped_linear", mutates_args=())
def grouped_linear(rows: Sequence[Tensor], weights: Sequence[Tensor], ends_E: Tensor) -> Tensor:
    """Sum over pairs of ``rows`` (R, I) and ``weights`` (E, I, O) of row @ matrix: (R, O)."""
    out_RO = rows[0].new_empty(rows[0].shape[0], weights[0].shape[-1])
    for expert, group in _groups(ends_E):
        out = out_RO[group]
        torch.mm(rows[0][group], weights[0][expert], out=out)
        for more_RI, weight_EIO in zip(rows[1:], weights[1:], strict=True):
            out.addmm_(more_RI[group], weight_EIO[expert])
    return out_RO


@grouped_linear.register_kernel("cuda")
def _(rows: Sequence[Tensor], weights: Sequence[Tensor], ends_E: Tensor) -> Tensor:
    pairs = zip(rows, weights, strict=True)
    products = [F.grouped_mm(row_RI, weight_EIO, offs=ends_E) for row_RI, weight_EIO in pairs]
    return products[0] if len(products) == 1 else torch.stack(products).sum(dim=0)


@grouped_linear.register_fake
def _(rows: Sequence[Tensor], weights: Sequence[Tensor], ends_E: Tensor) -> Tensor:
    return rows[0].new_empty(rows[0].shape[0], weights[0].shape[-1])


@torch.library.custom_op("llava_compete::grouped_outer", mutates_args=())
def grouped_outer(left_RI: Tensor, rights: Sequence[Tensor], ends_E: Tensor) -> list[Tensor]:
    """Of each of ``rights`` (R, O): each group's left.T @ right, (E, I, O); 0 of an empty group.

    That is the gradient of ``grouped_linear``'s weights. ``left`` should be the narrower side: in
    16 bits it is laid out anew, because there a transposed left operand costs half the speed.
    """
    outs = [left_RI.new_zeros(len(ends_E), left_RI.shape[1], r.shape[1]) for r in rights]
    for expert, group in _groups(ends_E):
        left = left_RI[group].T
        if left.element_size() == 2:
            left = left.contiguous()
        for out_EIO, right_RO in zip(outs, rights, strict=True):
            torch.mm(left, right_RO[group], out=out_EIO[expert])
    return outs


@grouped_outer.register_kernel("cuda")
def _(left_RI: Tensor, rights: Sequence[Tensor], ends_E: Tensor) -> list[Tensor]:
    return [F.grouped_mm(left_RI.T, right_RO, offs=ends_E) for right_RO in rights]


@grouped_outer.register_fake
def _(left_RI: Tensor, rights: Sequence[Tensor], ends_E: Tensor) -> list[Tensor]:
    return [left_RI.new_empty(len(ends_E), left_RI.shape[1], r.shape[1]) for r in rights]


def _groups(ends_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Number and rows of every group that has any."""
    begin = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > begin:
            yield expert, slice(begin, end)
        begin = end
