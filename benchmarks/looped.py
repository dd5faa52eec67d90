"""A CompeteSMoE layer as it is usually written: a loop over experts, each a module of its own.

What the library's layer is measured against, written from the paper's formulas (arXiv:2505.13380).
T tokens, E experts, K chosen per token, D width, F hidden width.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from llava_compete.moe import MoELayer, losses
from llava_compete.moe.routers.compete import CompeteRouter

Combine = Literal["assign", "index_add"]


class LoopedExpert(nn.Module):
    """``down(act(gate x) * (up x))``, or ``down(act(up x))`` where there is no gate."""

    def __init__(self, first_WD: Tensor, down_DF: Tensor, activation: str) -> None:
        super().__init__()
        halves = first_WD.chunk(first_WD.shape[0] // down_DF.shape[1])
        self.up = _linear(halves[-1])
        self.gate = _linear(halves[0]) if len(halves) == 2 else None
        self.down = _linear(down_DF)
        self.act_fn = ACT2FN[activation]

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act_fn(self.up(x_ND)))
        return self.down(self.act_fn(self.gate(x_ND)) * self.up(x_ND))


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear


class LoopedLayer(nn.Module):
    """The MoE layer ``layer`` with the given weights of its experts, (E, F or 2F, D) and (E, D, F).

    The first has the gate's rows before those of the up projection. The router's "distillation" is
    "paper".

    On a competition step all experts run one after the other, and those that won run once more in
    the loop that mixes, as in the official layer. ``combine``: how a token's outputs are added up,
    by an indexed assignment (``out[tokens] += ...``) or by ``index_add_``.
    """

    def __init__(
        self, layer: MoELayer, first_EWD: Tensor, down_EDF: Tensor, combine: Combine = "assign"
    ) -> None:
        super().__init__()
        router = layer.router
        assert isinstance(router, CompeteRouter)
        assert router.options.distillation == "paper"
        self.top_k = router.spec.top_k
        self.theta = router.options.theta
        self.combine = combine
        self.gate = _linear(router.gate.weight.detach())
        self.experts = nn.ModuleList(
            LoopedExpert(first_WD, down_DF, layer.experts.activation)
            for first_WD, down_DF in zip(first_EWD, down_EDF, strict=True)
        )
        self.competing = layer.competing
        self.losses: dict[str, Tensor] = {}  # of the last forward, float32 scalars

    def forward(self, x_TD: Tensor) -> Tensor:
        logits_TE = self.gate(x_TD).float()
        probs_TE = logits_TE.softmax(dim=-1)
        if self.competing:
            ids_TK, weights_TK = self._compete(x_TD, probs_TE)
        else:
            chosen_TK, ids_TK = probs_TE.topk(self.top_k, dim=-1)
            weights_TK = chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
            self.losses = {
                "balance": losses.load_balance(probs_TE, ids_TK),
                "router_z": losses.router_z(logits_TE),
            }
        return self._mix(x_TD, ids_TK, weights_TK.to(x_TD.dtype))

    def _compete(self, x_TD: Tensor, probs_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Winners and their weights."""
        outputs_TED = torch.stack([expert(x_TD) for expert in self.experts], dim=1)
        affinity_TE = F.softplus(outputs_TED.float()).mean(dim=-1)
        won_TK, ids_TK = affinity_TE.topk(self.top_k, dim=-1)
        competition_TE = affinity_TE.softmax(dim=-1)
        outputs_TKO = outputs_TED.gather(1, ids_TK[..., None].expand(-1, -1, x_TD.shape[-1]))
        self.losses = {
            "distillation": losses.distillation(probs_TE, competition_TE, ids_TK, theta=self.theta),
            "diversity": losses.diversity(outputs_TKO),
            "competition_balance": losses.load_balance(competition_TE, ids_TK),
        }
        return ids_TK, won_TK / won_TK.sum(dim=-1, keepdim=True)

    def _mix(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for number, expert in enumerate(self.experts):
            tokens_N, place_N = torch.where(ids_TK == number)
            out_ND = weights_TK[tokens_N, place_N, None] * expert(x_TD[tokens_N])
            if self.combine == "assign":
                y_TD[tokens_N] += out_ND
            else:
                y_TD.index_add_(0, tokens_N, out_ND)
        return y_TD
