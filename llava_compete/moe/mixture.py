"""The chosen experts of each token and their weighted sum, with a backward of its own.

T tokens, E experts, K chosen per token, R rows (pairs grouped by expert), D input, F hidden, O
output width.

Autograd would keep the gathered tokens, the activations and the outputs of every pair. Kept here
are the products of gate and up projection alone; what lies between is cheap to make again. The
routing weight is multiplied into the hidden units, which is a pass less over the wide outputs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llava_compete.moe.elementwise import Elementwise, at_least_float32
from llava_compete.moe.grouping import Groups, padded
from llava_compete.moe.products import parts


class Weights(NamedTuple):
    """Stacked weights of the experts, in the dtype of the tokens."""

    up_EDF: Tensor
    down_EOF: Tensor
    gate_EDF: Tensor | None = None
    up_bias_EF: Tensor | None = None
    down_bias_EO: Tensor | None = None
    gate_bias_EF: Tensor | None = None


def mix(
    x_TD: Tensor, weights_TK: Tensor, groups: Groups, weights: Weights, elementwise: Elementwise
) -> Tensor:
    """Sum over K of ``weights_TK`` times the chosen expert's output, (T, O) in the dtype of x."""
    return _Mixture.apply(elementwise, *groups, x_TD, weights_TK, *weights)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        elementwise: Elementwise,
        row_TK: Tensor,
        token_R: Tensor,
        ends_E: Tensor,
        x_TD: Tensor,
        weights_TK: Tensor,
        *stacked: Any,
    ) -> Tensor:
        groups, weights = Groups(row_TK, token_R, ends_E), Weights(*stacked)
        weight_R1, tokens = groups.scatter(weights_TK), padded(x_TD)
        out_RO = x_TD.new_empty(len(token_R), weights.down_EOF.shape[1])
        kept: list[Tensor | None] = []
        for part in parts(ends_E, elementwise, empty=any(ctx.needs_input_grad)):
            x_RD, weight = groups.read(tokens, part.rows), weight_R1[part.rows]
            up_RF = part.linear(x_RD, weights.up_EDF, weights.up_bias_EF)
            gate_RF = None
            if weights.gate_EDF is not None:
                gate_RF = part.linear(x_RD, weights.gate_EDF, weights.gate_bias_EF)
            hidden_RF = elementwise.weighted(gate_RF, up_RF, weight)
            out = part.linear(hidden_RF, weights.down_EOF.mT, out=out_RO[part.rows])
            if weights.down_bias_EO is not None:
                out += weight * part.of_rows(weights.down_bias_EO, len(out))
            kept += [gate_RF, up_RF]
        ctx.elementwise = elementwise
        ctx.save_for_backward(*groups, x_TD, weights_TK, *stacked, *kept)
        return groups.combine(out_RO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        row_TK, token_R, ends_E, x_TD, weights_TK, *saved = ctx.saved_tensors
        stacked, kept = saved[: len(Weights._fields)], saved[len(Weights._fields) :]
        groups, weights = Groups(row_TK, token_R, ends_E), Weights(*stacked)
        weight_R1, tokens, out_grads = groups.scatter(weights_TK), padded(x_TD), padded(grad_TO)
        wanted = zip(Weights._fields, stacked, ctx.needs_input_grad[6:], strict=True)
        grads = {name: torch.empty_like(weight) for name, weight, needed in wanted if needed}
        x_grad_RD = x_TD.new_empty(len(token_R), x_TD.shape[1])
        weight_grad_R = weight_R1.new_empty(len(token_R), dtype=at_least_float32(weight_R1))
        for number, part in enumerate(parts(ends_E, ctx.elementwise, empty=True)):
            gate_RF, up_RF = kept[2 * number : 2 * number + 2]
            grad_RO, weight = groups.read(out_grads, part.rows), weight_R1[part.rows]
            found = ctx.elementwise.weighted_backward(
                gate_RF, up_RF, weight, part.linear(grad_RO, weights.down_EOF)
            )
            weight_grad_R[part.rows] = found.weight_R
            part.outer(grads, grad_RO, {"down_EOF": found.hidden_RF})
            inner = {"up_EDF": found.up_RF, "gate_EDF": found.gate_RF}
            part.outer(grads, groups.read(tokens, part.rows), inner)
            if weights.down_bias_EO is not None:
                bias = part.of_rows(weights.down_bias_EO, len(grad_RO))
                weight_grad_R[part.rows] += (grad_RO * bias).sum(dim=-1, dtype=weight_grad_R.dtype)
                part.sums(grads, weight, {"down_bias_EO": grad_RO})
                inner = {"up_bias_EF": found.up_RF, "gate_bias_EF": found.gate_RF}
                part.sums(grads, torch.ones_like(weight), inner)
            x_grad = part.linear(found.up_RF, weights.up_EDF.mT, out=x_grad_RD[part.rows])
            if weights.gate_EDF is not None:
                part.add_linear(found.gate_RF, weights.gate_EDF.mT, x_grad)
        weight_grad_R[-1] = 0.0  # of pairs without an expert
        weight_grad_TK = weight_grad_R[row_TK].to(weights_TK.dtype)
        of_stacked = (grads.get(name) for name in Weights._fields)
        return None, None, None, None, groups.combine(x_grad_RD), weight_grad_TK, *of_stacked
