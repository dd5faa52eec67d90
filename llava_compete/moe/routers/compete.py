"""CompeteSMoE (arXiv:2505.13380): experts compete for tokens, a router learns the outcome.

T tokens, E experts, K chosen per token, O width of an expert's output.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from llava_compete.moe import losses
from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter


def agreement(router_ids_TK: Tensor, winner_ids_TK: Tensor, mask_T: Tensor | None) -> Tensor:
    """Share of the winners that the router would have chosen too; K/E is chance."""
    hit_TK = (winner_ids_TK[:, :, None] == router_ids_TK[:, None, :]).any(dim=-1)
    return losses.mean_over_tokens(hit_TK.float().mean(dim=-1), mask_T)


@dataclass(frozen=True)
class CompeteOptions:
    """How the router learns the outcome of the competition."""

    # paper: squared error to softmax(affinity); outcome: KL from the winners' mixing weights.
    distillation: Literal["paper", "outcome"] = "paper"
    theta: float = 0.1  # paper's extra weight of the winners' entries
    detach: bool = False  # on router steps the task's gradient does not reach the gate
    # exact: the balance term also teaches experts by the tokens that they lost; none: winners
    # alone learn in a competition, which makes it cheaper (docs/performance.md).
    losers_gradient: Literal["exact", "none"] = "exact"

    def __post_init__(self) -> None:
        if self.distillation not in ("paper", "outcome"):
            raise ValueError(f"distillation={self.distillation!r} must be paper or outcome")
        if self.losers_gradient not in ("exact", "none"):
            raise ValueError(f"losers_gradient={self.losers_gradient!r} must be exact or none")
        if self.theta < 0:
            raise ValueError(f"theta={self.theta} must not be negative")


class CompeteRouter(TopKRouter):
    """Plain top-K on router steps; on competition steps all experts run and the strongest win.

    On a competition step the weights are the winners' shares of the affinity, with gradient, and
    the winners' outputs are handed back so that no expert runs twice. Losses there: distillation
    (gate only), diversity (winners only), competition_balance (all experts, through the affinity
    softmax). There is no z-loss and no balance of the gate on such a step, as in the official
    code. Which layers compete is said by ``context.competing``, never by autograd's state.
    """

    Options = CompeteOptions
    loss_weights = MappingProxyType(
        {
            **TopKRouter.loss_weights,
            "distillation": 0.01,
            "diversity": 0.01,
            "competition_balance": 0.01,
        }
    )
    competes = True

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        logits_TE = self.gate(x_TD).float()
        probs_TE = logits_TE.softmax(dim=-1)
        if not context.competing:
            return self.route(x_TD, logits_TE, probs_TE, context)
        return self._compete(x_TD, logits_TE, probs_TE, experts, context.mask_T)

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        """TopKRouter's; with ``options.detach`` only the losses move the gate."""
        routing = super().route(x_TD, logits_TE, probs_TE, context)
        if self.options.detach:
            return routing._replace(weights_TK=routing.weights_TK.detach())
        return routing

    def _compete(
        self,
        x_TD: Tensor,
        logits_TE: Tensor,
        probs_TE: Tensor,
        experts: Experts,
        mask_T: Tensor | None,
    ) -> Routing:
        top_k = self.spec.top_k
        affinity_TE, ids_TK, outputs_TKO = experts(
            x_TD, winners=top_k, losers_gradient=self.options.losers_gradient == "exact"
        )
        won_TK = affinity_TE.gather(-1, ids_TK)
        weights_TK = won_TK / won_TK.sum(dim=-1, keepdim=True)
        competition_TE = affinity_TE.softmax(dim=-1)
        with torch.no_grad():
            router_ids_TK = probs_TE.topk(top_k, dim=-1).indices
            agreed = agreement(router_ids_TK, ids_TK, mask_T)
        if self.options.distillation == "outcome":
            distillation = losses.outcome_distillation(logits_TE, ids_TK, weights_TK, mask_T)
        else:
            distillation = losses.distillation(
                probs_TE, competition_TE, ids_TK, theta=self.options.theta, mask_T=mask_T
            )
        return Routing(
            ids_TK=ids_TK,
            weights_TK=weights_TK.to(x_TD.dtype),
            losses={
                "distillation": distillation,
                "diversity": losses.diversity(outputs_TKO, mask_T),
                "competition_balance": losses.load_balance(competition_TE, ids_TK, mask_T),
            },
            metrics={"agreement": agreed},
            scores_TE=logits_TE.detach(),
            outputs_TKO=outputs_TKO,
        )
