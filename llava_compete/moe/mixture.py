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
from llava_compete.moe.grouping import Groups
from llava_compete.moe.products import grouped_linear, grouped_outer


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
        x_RD, weight_R1 = groups.read(x_TD), groups.scatter(weights_TK)
        experts_R = groups.experts_R() if weights.up_bias_EF is not None else None
        up_RF = _linear(x_RD, weights.up_EDF, weights.up_bias_EF, ends_E, experts_R)
        gate_RF = None
        if weights.gate_EDF is not None:
            gate_RF = _linear(x_RD, weights.gate_EDF, weights.gate_bias_EF, ends_E, experts_R)
        hidden_RF = elementwise.weighted(gate_RF, up_RF, weight_R1)
        out_RO = grouped_linear([hidden_RF], [weights.down_EOF.mT], ends_E)
        if weights.down_bias_EO is not None:
            out_RO += weight_R1 * weights.down_bias_EO[experts_R]
        ctx.elementwise = elementwise
        ctx.save_for_backward(*groups, x_TD, weights_TK, gate_RF, up_RF, *stacked)
        return groups.combine(out_RO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        row_TK, token_R, ends_E, x_TD, weights_TK, gate_RF, up_RF, *stacked = ctx.saved_tensors
        groups, weights = Groups(row_TK, token_R, ends_E), Weights(*stacked)
        of_x, of_weights = ctx.needs_input_grad[4], ctx.needs_input_grad[5]
        wanted = Weights(*ctx.needs_input_grad[6:])
        weight_R1 = groups.scatter(weights_TK)
        grad_RO = groups.read(grad_TO.contiguous())
        found = ctx.elementwise.weighted_backward(
            gate_RF, up_RF, weight_R1, grouped_linear([grad_RO], [weights.down_EOF], ends_E)
        )
        inner = [found.up_RF] if gate_RF is None else [found.up_RF, found.gate_RF]
        grads: dict[str, Tensor] = {}
        if wanted.down_EOF:
            (grads["down_EOF"],) = grouped_outer(grad_RO, [found.hidden_RF], ends_E)
        if wanted.up_EDF:
            names = ("up_EDF", "gate_EDF")
            outers = grouped_outer(groups.read(x_TD), inner, ends_E)
            grads |= dict(zip(names, outers, strict=False))
        weight_grad_R = found.weight_R
        if weights.down_bias_EO is not None:
            grads["down_bias_EO"] = _sums(weight_R1, grad_RO, ends_E)
            grads["up_bias_EF"] = _sums(torch.ones_like(weight_R1), found.up_RF, ends_E)
            if gate_RF is not None:
                grads["gate_bias_EF"] = _sums(torch.ones_like(weight_R1), found.gate_RF, ends_E)
            bias_RO = weights.down_bias_EO[groups.experts_R()]
            weight_grad_R = weight_grad_R + (grad_RO * bias_RO).sum(
                dim=-1, dtype=at_least_float32(grad_RO)
            )
        x_grad_TD = weight_grad_TK = None
        if of_x:
            into = [w.mT for w in (weights.up_EDF, weights.gate_EDF) if w is not None]
            x_grad_TD = groups.combine(grouped_linear(inner, into, ends_E))
        if of_weights:
            weight_grad_R[-1] = 0.0
            weight_grad_TK = weight_grad_R[row_TK].to(weights_TK.dtype)
        of_stacked = (grads.get(name) for name in Weights._fields)
        return None, None, None, None, x_grad_TD, weight_grad_TK, *of_stacked


def _linear(
    x_RD: Tensor,
    weight_EDF: Tensor,
    bias_EF: Tensor | None,
    ends_E: Tensor,
    experts_R: Tensor | None,
) -> Tensor:
    out_RF = grouped_linear([x_RD], [weight_EDF], ends_E)
    return out_RF if bias_EF is None else out_RF.add_(bias_EF[experts_R])


def _sums(weight_R1: Tensor, values_RF: Tensor, ends_E: Tensor) -> Tensor:
    """Weighted sums of each group's rows, (E, F)."""
    (sums_E1F,) = grouped_outer(weight_R1, [values_RF], ends_E)
    return sums_E1F[:, 0]
