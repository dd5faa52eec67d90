"""What an expert does between its products, and the gradient of it.

R rows, F hidden width. These parts are bound by memory, not by products: ``compiled`` makes one
pass over memory of each function (docs/performance.md has what that is worth).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN


class HiddenGradient(NamedTuple):
    """``hidden``, which the gradient of the down projection needs, and the gradients."""

    hidden_RF: Tensor
    gate_RF: Tensor | None
    up_RF: Tensor


class WeightedGradient(NamedTuple):
    """As HiddenGradient, with that of the rows' weights."""

    hidden_RF: Tensor
    gate_RF: Tensor | None
    up_RF: Tensor
    weight_R: Tensor  # at least float32


def hidden(act: nn.Module, gate_RF: Tensor | None, up_RF: Tensor) -> Tensor:
    """``act(gate) * up``, or ``act(up)`` of an expert without a gate."""
    return act(up_RF) if gate_RF is None else act(gate_RF) * up_RF


def hidden_backward(
    act: nn.Module, gate_RF: Tensor | None, up_RF: Tensor, grad_RF: Tensor
) -> HiddenGradient:
    """``hidden`` again and the gradients of its arguments."""
    if gate_RF is None:
        hidden_RF, up_grad_RF = _act_backward(act, up_RF, grad_RF)
        return HiddenGradient(hidden_RF, None, up_grad_RF)
    acted_RF, gate_grad_RF = _act_backward(act, gate_RF, grad_RF * up_RF)
    return HiddenGradient(acted_RF * up_RF, gate_grad_RF, acted_RF * grad_RF)


def _act_backward(act: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """``act(x)`` and its gradient."""
    if torch.compiler.is_compiling():  # knows no autograd inside; elsewhere vjp is the slower
        acted, vjp, *_ = torch.func.vjp(act, x)
        return acted, vjp(grad)[0]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        acted = act(leaf)
    return acted.detach(), torch.autograd.grad(acted, leaf, grad)[0]


def weighted(act: nn.Module, gate_RF: Tensor | None, up_RF: Tensor, weight_R1: Tensor) -> Tensor:
    """``hidden`` times each row's routing weight."""
    return hidden(act, gate_RF, up_RF) * weight_R1


def weighted_backward(
    act: nn.Module, gate_RF: Tensor | None, up_RF: Tensor, weight_R1: Tensor, grad_RF: Tensor
) -> WeightedGradient:
    """``weighted`` again and the gradients of its arguments."""
    found = hidden_backward(act, gate_RF, up_RF, grad_RF * weight_R1)
    weight_R = (grad_RF * found.hidden_RF).sum(dim=-1, dtype=at_least_float32(grad_RF))
    return WeightedGradient(found.hidden_RF * weight_R1, found.gate_RF, found.up_RF, weight_R)


def affinity(outputs: Tensor) -> Tensor:
    """Neural response of an expert: mean over its output (..., O) of softplus, float32, > 0.

    Float32, because in bfloat16 the responses of freshly upcycled experts tie.
    """
    return F.softplus(outputs.to(at_least_float32(outputs))).mean(dim=-1)


def at_least_float32(values: Tensor) -> torch.dtype:
    """The dtype in which values are summed."""
    return torch.promote_types(values.dtype, torch.float32)


def affinity_backward(outputs_TO: Tensor, grad_T: Tensor, won_TO: Tensor) -> Tensor:
    """Gradient of an expert's outputs: ``won_TO`` of where it won, and that of its affinity."""
    of_affinity_TO = (
        torch.sigmoid(outputs_TO.to(at_least_float32(outputs_TO)))
        * (grad_T / outputs_TO.shape[-1])[:, None]
    )
    return (of_affinity_TO + won_TO).to(outputs_TO.dtype)


def turned(left_RI: Tensor) -> Tensor:
    """The transposed matrix, to stand left in a product; in 16 bits laid out anew.

    On a CPU a transposed left operand costs half the speed there.
    """
    return left_RI.T.contiguous() if left_RI.element_size() == 2 else left_RI.T


@cache
def shared_activation(name: str) -> nn.Module:
    """The one module of an activation's name in ACT2FN, so that layers share what is compiled."""
    return ACT2FN[name]


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


class Elementwise(NamedTuple):
    """The functions of one activation, as they are or compiled."""

    act: nn.Module
    compiled: bool

    def hidden(self, *args: Any) -> Tensor:
        return self._run(hidden, self.act, *args)

    def hidden_backward(self, *args: Any) -> HiddenGradient:
        return self._run(hidden_backward, self.act, *args)

    def weighted(self, *args: Any) -> Tensor:
        return self._run(weighted, self.act, *args)

    def weighted_backward(self, *args: Any) -> WeightedGradient:
        return self._run(weighted_backward, self.act, *args)

    def affinity(self, *args: Any) -> Tensor:
        return self._run(affinity, *args)

    def affinity_backward(self, *args: Any) -> Tensor:
        return self._run(affinity_backward, *args)

    def turned(self, left_RI: Tensor) -> Tensor:
        return self._run(turned, left_RI)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return (_compiled(function) if self.compiled else function)(*args)
