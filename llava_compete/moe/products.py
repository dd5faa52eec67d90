"""Matrix products of rows that are grouped by expert, each group with its expert's matrix.

R rows, E experts, I width in, O width out. Group e is the rows from ``ends_E[e - 1]`` (0 for the
first) to ``ends_E[e]``; rows behind the last group are no one's: they are not read, and of an
output not written.

On a GPU all groups are one part with torch's grouped products, and no number passes through the
host. On a CPU each group is a part of its own: what is made of it then stays in the cache until it
is used, and a grouped call would not be faster (docs/performance.md).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from llava_compete.moe.elementwise import Elementwise, turned


class Part(NamedTuple):
    """Rows that are taken together: those of one expert, or with ``expert`` None all."""

    rows: slice
    expert: int | None
    ends_E: Tensor
    elementwise: Elementwise

    def linear(
        self,
        x_RI: Tensor,
        weight_EIO: Tensor,
        bias_EO: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Each row times its expert's matrix, with its bias, (R, O)."""
        if self.expert is not None:
            out_RO = torch.mm(x_RI, weight_EIO[self.expert], out=out)
        else:
            out_RO = grouped_linear(x_RI, weight_EIO, self.ends_E)
            out_RO = out_RO if out is None else out.copy_(out_RO)
        return out_RO if bias_EO is None else out_RO.add_(self.of_rows(bias_EO, len(x_RI)))

    def add_linear(self, x_RI: Tensor, weight_EIO: Tensor, to_RO: Tensor) -> None:
        """Add each row times its expert's matrix to ``to_RO``."""
        if self.expert is not None:
            to_RO.addmm_(x_RI, weight_EIO[self.expert])
        else:
            to_RO += grouped_linear(x_RI, weight_EIO, self.ends_E)

    def of_rows(self, values_EO: Tensor, num_rows: int) -> Tensor:
        """What is each row's expert's: (R, O), or (O,) where all rows are of one."""
        if self.expert is not None:
            return values_EO[self.expert]
        rows_R = torch.arange(num_rows, device=values_EO.device)
        experts_R = torch.bucketize(rows_R, self.ends_E, right=True)
        return values_EO[experts_R.clamp(max=len(values_EO) - 1)]

    def outer(
        self, grads: dict[str, Tensor], left_RI: Tensor, rights: Mapping[str, Tensor | None]
    ) -> None:
        """Write left.T @ right of each group into ``grads`` (E, I, O) under the right's name.

        Names that ``grads`` has not are left out. ``left`` should be the narrower side.
        """
        wanted = {
            name: right for name, right in rights.items() if right is not None and name in grads
        }
        if self.expert is None:
            for name, right_RO in wanted.items():
                grads[name] = grouped_outer(left_RI, right_RO, self.ends_E)
        elif wanted:
            left_IR = self.elementwise.turned(left_RI)
            for name, right_RO in wanted.items():
                torch.mm(left_IR, right_RO, out=grads[name][self.expert])

    def sums(
        self, grads: dict[str, Tensor], weight_R1: Tensor, values: Mapping[str, Tensor | None]
    ) -> None:
        """Write each group's weighted sum of rows into ``grads`` (E, O), as ``outer`` does."""
        stacked = {name: grads[name][:, None] for name in values if name in grads}
        self.outer(stacked, weight_R1, values)
        grads.update({name: grad_E1O[:, 0] for name, grad_E1O in stacked.items()})


def parts(ends_E: Tensor, elementwise: Elementwise, *, empty: bool) -> Iterator[Part]:
    """All rows; those of a CPU expert by expert, with or without experts that have no row."""
    on_host = ends_E.device.type == "cpu" and not isinstance(ends_E, FakeTensor)
    if not on_host or torch.compiler.is_compiling():
        yield Part(slice(None), None, ends_E, elementwise)
        return
    for expert, rows in enumerate(_groups(ends_E)):
        if empty or rows.stop > rows.start:
            yield Part(rows, expert, ends_E, elementwise)


@torch.library.custom_op("llava_compete::grouped_linear", mutates_args=())
def grouped_linear(x_RI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Each row times its expert's matrix, (R, O); an operator that torch.compile takes as it is."""
    out_RO = x_RI.new_empty(x_RI.shape[0], weight_EIO.shape[-1])
    for expert, rows in enumerate(_groups(ends_E)):
        torch.mm(x_RI[rows], weight_EIO[expert], out=out_RO[rows])
    return out_RO


@grouped_linear.register_kernel("cuda")
def _(x_RI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(x_RI, weight_EIO, offs=ends_E)


@grouped_linear.register_fake
def _(x_RI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
    return x_RI.new_empty(x_RI.shape[0], weight_EIO.shape[-1])


@torch.library.custom_op("llava_compete::grouped_outer", mutates_args=())
def grouped_outer(left_RI: Tensor, right_RO: Tensor, ends_E: Tensor) -> Tensor:
    """left.T @ right of each group, (E, I, O): the gradient of ``grouped_linear``'s matrices."""
    out_EIO = left_RI.new_empty(len(ends_E), left_RI.shape[1], right_RO.shape[1])
    for expert, rows in enumerate(_groups(ends_E)):
        torch.mm(turned(left_RI[rows]), right_RO[rows], out=out_EIO[expert])
    return out_EIO


@grouped_outer.register_kernel("cuda")
def _(left_RI: Tensor, right_RO: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(left_RI.T, right_RO, offs=ends_E)


@grouped_outer.register_fake
def _(left_RI: Tensor, right_RO: Tensor, ends_E: Tensor) -> Tensor:
    return left_RI.new_empty(len(ends_E), left_RI.shape[1], right_RO.shape[1])


def _groups(ends_E: Tensor) -> Iterator[slice]:
    begin = 0
    for end in ends_E.tolist():
        yield slice(begin, end)
        begin = end
