"""Plain top-K routing (SMoE): softmax over a linear gate, the K largest, renormalised.

T tokens, E experts, K chosen per token, D width.  Shazeer et al., arXiv:1701.06538, without the
noise; balance loss of Switch (arXiv:2101.03961), z-loss of ST-MoE (arXiv:2202.08906).
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from llava_compete.moe import losses
from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import Router, RouterSpec, Routing, RoutingContext


def token_choice(
    x_TD: Tensor,
    logits_TE: Tensor,
    probs_TE: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    context: RoutingContext,
) -> Routing:
    """The Routing of a choice made by token, with Switch's balance loss and the z-loss."""
    return Routing(
        ids_TK=ids_TK,
        weights_TK=weights_TK.to(x_TD.dtype),
        losses={
            "balance": losses.load_balance(probs_TE, ids_TK, context.mask_T),
            "router_z": losses.router_z(logits_TE, context.mask_T),
        },
        metrics={},
        scores_TE=logits_TE.detach(),
    )


class TopKRouter(Router):
    """A linear gate without bias; softmax and losses in float32 whatever the dtype of x."""

    loss_weights = MappingProxyType({"balance": 0.01, "router_z": 0.001})

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.gate = nn.Linear(spec.width, self.gate_rows(), bias=False)
        self.reset_parameters()

    def gate_rows(self) -> int:
        """Things the gate scores: the experts."""
        return self.spec.num_experts

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) from the layer's own seed: no two layers begin with the same gate."""
        weight = self.gate.weight
        if weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.spec.seed)
        # The device by name: zero.Init makes another one the default while a model is built.
        values = torch.randn(weight.shape, generator=generator, device="cpu") * 0.02
        with torch.no_grad():
            weight.copy_(values)

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        logits_TE = self.gate(x_TD).float()
        probs_TE = logits_TE.softmax(dim=-1)
        return self.route(x_TD, logits_TE, probs_TE, context)

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        """The K most probable experts; weights are their probabilities over their sum."""
        chosen_TK, ids_TK = probs_TE.topk(self.spec.top_k, dim=-1)
        weights_TK = chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
        return token_choice(x_TD, logits_TE, probs_TE, ids_TK, weights_TK, context)
