"""USMoE (arXiv:2503.22996): one score and one choice for tokens and experts alike.

T tokens in G groups of S, E experts, K per token in the mean.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from llava_compete.moe import losses
from llava_compete.moe.routers.across import Groups, ScopeOptions, ScopeRouter, best_pairs
from llava_compete.moe.routers.base import Routing, RoutingContext


def unified_score(logits_TE: Tensor, alpha: float) -> Tensor:
    """alpha * softmax over the experts + (1 - alpha) * (2/E) * sigmoid; each is 1/E at z = 0."""
    by_expert_TE = logits_TE.softmax(dim=-1)
    by_token_TE = torch.sigmoid(logits_TE) * (2 / logits_TE.shape[-1])
    return alpha * by_expert_TE + (1 - alpha) * by_token_TE


@dataclass(frozen=True)
class USMoEOptions(ScopeOptions):
    """The share of the score that compares experts."""

    alpha: float = 0.5  # 1: the softmax alone; 0: the sigmoid alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1")


class USMoERouter(ScopeRouter):
    """The n K pairs of token and expert with the largest unified score, of a sequence of n tokens.

    The score is alpha * softmax(z) + (1 - alpha) * (2/E) * sigmoid(z), z of a linear gate. The
    softmax compares the experts of a token, the sigmoid tokens with each other: it is the form of
    the official code, pointwise, where the paper's text normalises along the tokens. Scores are
    the weights. A token may get 0 to E experts. The parameters are those of ``topk``, so that a
    checkpoint trained by either can be evaluated under the other.

    ``renormalise`` divides a token's weights by the sum over its chosen experts, which is what a
    checkpoint of ``topk`` was trained with. The official code divides by the sum over all E, and
    only in models whose own router does so (norm_topk_prob), which moves weights hardly.

    Balance is that of the authors' training from scratch, Switch's loss on softmax(z) and the
    chosen pairs, at 0.01; their use without training has none. Padding takes no part in the
    choice, in the code it does. Groups are sequences or pictures (``scope``).

    The choice for a token depends on the tokens behind it: not for generating text, for which
    scope ``token`` takes a token's own K largest scores.
    """

    Options: ClassVar[type[USMoEOptions]] = USMoEOptions
    loss_weights = MappingProxyType({"balance": 0.01})

    def scores(self, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        return unified_score(logits_TE, self.options.alpha)

    def choose(self, groups: Groups) -> tuple[Tensor, int]:
        num_groups, size, _ = groups.scores_GSE.shape
        return best_pairs(groups, self.spec.top_k), num_groups * size * self.spec.top_k

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        routing = super().route(x_TD, logits_TE, probs_TE, context)
        balance = losses.load_balance(probs_TE, routing.ids_TK, context.mask_T)
        return routing._replace(losses={"balance": balance})
