"""A step of one layer, called again and again: forward, and backward from what touches everything.

T tokens, D width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import Laps
from benchmarks.moe_cases import Case
from llava_compete.moe import MoELayer
from llava_compete.moe.routers.compete import CompeteRouter

X_SEED, GRAD_SEED = 1, 0


class Seconds(NamedTuple):
    """Of one call; ``forward`` keeps what the backward needs."""

    forward: float
    both: float


class Graph(NamedTuple):
    """What a forward leaves: the layer's output, and its losses in one weighted sum."""

    y_TD: Tensor
    loss: Tensor


class Step:
    """Called: forward, then backward to tokens and all weights; Seconds.

    The backward begins with a gradient of the output that is drawn once, and with the losses at
    the coefficients of CompeteSMoE. Drawing tokens and dropping gradients are not in the time.
    """

    def __init__(self, layer: nn.Module, case: Case, device: torch.device) -> None:
        self.layer = layer
        self.case = case
        self.device = device
        self.seed = X_SEED
        self.x_TD = draw_tokens(case, device, X_SEED).requires_grad_()
        self.grad_TD = draw_tokens(case, device, GRAD_SEED)

    def forward(self) -> Graph:
        """Output and losses, with their graph."""
        y_TD = self.layer(self.x_TD)
        losses = losses_of(self.layer)
        weights = CompeteRouter.loss_weights
        return Graph(y_TD, torch.stack([weights[k] * v for k, v in losses.items()]).sum())

    def backward(self, graph: Graph) -> None:
        """Gradients of tokens and weights."""
        torch.autograd.backward([graph.y_TD, graph.loss], [self.grad_TD, None])

    def clear(self) -> None:
        """Drops the gradients."""
        self.x_TD.grad = None
        self.layer.zero_grad(set_to_none=True)

    def __call__(self) -> Seconds:
        if self.case.fresh:  # the same for all candidates of a round
            self.seed += 1
            self.x_TD = draw_tokens(self.case, self.device, self.seed).requires_grad_()
        laps = Laps(self.device)
        laps.mark()
        graph = self.forward()
        laps.mark()
        self.backward(graph)
        laps.mark()
        seconds = Seconds(*laps.seconds())
        self.clear()
        return seconds


def losses_of(layer: nn.Module) -> Mapping[str, Tensor]:
    """Losses that the last forward left."""
    if isinstance(layer, MoELayer):
        return layer.last_routing.losses
    losses = layer.losses
    assert isinstance(losses, dict)
    return losses


def draw_tokens(case: Case, device: torch.device, seed: int) -> Tensor:
    """Normal numbers in the shape of the case's tokens, (T, D)."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(case.tokens, case.width, generator=generator)
    return x_TD.to(device, getattr(torch, case.dtype))


def group_sizes(layer: MoELayer, case: Case, device: torch.device) -> list[int]:
    """Tokens of each expert in a Step."""
    if case.step == "competition":
        return [case.tokens] * case.experts
    with torch.no_grad():
        layer(draw_tokens(case, device, X_SEED))
    ids_N = layer.last_routing.ids_TK.flatten()
    return torch.bincount(ids_N, minlength=case.experts).tolist()
