"""Choices made across tokens: which (token, expert) pairs of a group are taken.

T = G*S tokens in G groups of S that compete with each other, E experts, K of them for a token in
the mean, P = S*E pairs of a group.  How many tokens of a group count is known to the device alone:
nothing here waits for it.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llava_compete.moe import losses
from llava_compete.moe.routers.base import RouterSpec, Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter
from llava_compete.moe.sequences import Sequences
from llava_compete.names import nearest

SCOPES = ("sequence", "batch", "token")


class Groups(NamedTuple):
    """Scores of tokens that compete with each other."""

    scores_GSE: Tensor  # -inf for a token that does not count
    kept_G: Tensor  # int64; how many count


def grouped(scores_TE: Tensor, sequences: Sequences, mask_T: Tensor | None) -> Groups:
    """The scores, a group for each sequence."""
    kept_TE = torch.ones_like(scores_TE[:, :1], dtype=torch.bool)
    if mask_T is not None:
        kept_TE = mask_T[:, None]
    return Groups(
        scores_GSE=sequences.split(scores_TE.masked_fill(~kept_TE, -torch.inf), -torch.inf),
        kept_G=sequences.split(kept_TE, False).sum(dim=(1, 2)),
    )


def places(scores: Tensor) -> Tensor:
    """Place of each score on the last axis, int64, 0 for the largest; no two share one.

    Of equal scores the first on the axis comes first, on every device: the sort is stable.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    count = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, count)


def best_tokens(groups: Groups, top_k: int) -> Tensor:
    """The ceil(n K / E) best of a group's n tokens for each expert, bool (G, S, E).

    Of equal scores the earlier token's is taken.
    """
    num_experts = groups.scores_GSE.shape[-1]
    taken_G = (groups.kept_G * top_k + num_experts - 1) // num_experts
    place_GES = places(groups.scores_GSE.transpose(1, 2))
    return (place_GES < taken_G[:, None, None]).transpose(1, 2)


def best_pairs(groups: Groups, top_k: int) -> Tensor:
    """The n*K best pairs of a group of n tokens, bool (G, S, E).

    Of equal scores the earlier token's is taken, and the lower expert's of one token.
    """
    place_GP = places(groups.scores_GSE.flatten(1))
    return (place_GP < groups.kept_G[:, None] * top_k).view_as(groups.scores_GSE)


def ragged(
    x_TD: Tensor,
    chosen_TE: Tensor,
    weights_TE: Tensor,
    scores_TE: Tensor,
    context: RoutingContext,
    most_pairs: int,
) -> Routing:
    """The Routing, without losses, of any number of experts for each token: a column an expert.

    Its metric ``without_expert`` is the share of tokens that no expert takes.
    """
    num_tokens, num_experts = chosen_TE.shape
    experts_E = torch.arange(num_experts, device=chosen_TE.device)
    none_T = (~chosen_TE.any(dim=-1)).float()
    return Routing(
        ids_TK=torch.where(chosen_TE, experts_E, num_experts),
        weights_TK=torch.where(chosen_TE, weights_TE, 0.0).to(x_TD.dtype),
        losses={},
        metrics={"without_expert": losses.mean_over_tokens(none_T, context.mask_T)},
        scores_TE=scores_TE.detach(),
        most_pairs=most_pairs if most_pairs < num_tokens * num_experts else None,
    )


def over_their_sum(weights_TK: Tensor) -> Tensor:
    """A token's weights divided by their sum; zeros stay zeros."""
    sum_T1 = weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK / torch.where(sum_T1 > 0, sum_T1, 1.0)


@dataclass(frozen=True)
class ScopeOptions:
    """Which tokens compete with each other for the experts."""

    # sequence: those of one sequence or picture; batch: all of a forward; token: none, each takes
    # its own K best, as generating token by token must.
    scope: str = "sequence"
    renormalise: bool = False  # divide a token's weights by their sum

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is not known{nearest(self.scope, SCOPES)}")


class ScopeRouter(TopKRouter):
    """A linear gate whose scores are compared across the tokens of ``options.scope``.

    A subclass gives the scores, which are the weights too, and the choice among a group's. In
    scope ``token`` the choice is the token's K largest scores. In the others a later token can
    take an earlier one's place, so ``sees_future`` is true; a token may get any number of
    experts, 0 too, and then it passes the layer by the residual connection alone.
    """

    Options: ClassVar[type[ScopeOptions]] = ScopeOptions
    loss_weights = MappingProxyType({})
    sums_to_one = False

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.sees_future = self.options.scope != "token"

    def scores(self, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        """What is compared, (T, E), positive."""
        raise TypeError(f"{type(self).__name__} does not say what it compares")

    def choose(self, groups: Groups) -> tuple[Tensor, int]:
        """The chosen pairs, bool (G, S, E), and a bound of their number that the host knows."""
        raise TypeError(f"{type(self).__name__} does not say how it chooses")

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        """The choice of the scope; weights are the scores."""
        scores_TE = self.scores(logits_TE, probs_TE)
        if self.options.scope == "token":
            weights_TK, ids_TK = scores_TE.topk(self.spec.top_k, dim=-1)
            if self.options.renormalise:
                weights_TK = over_their_sum(weights_TK)
            return Routing(ids_TK, weights_TK.to(x_TD.dtype), {}, {}, scores_TE.detach())
        num_tokens, num_experts = scores_TE.shape
        sequences = Sequences(num_tokens)
        if self.options.scope == "sequence" and context.sequences is not None:
            sequences = context.sequences
        groups = grouped(scores_TE.detach(), sequences, context.mask_T)
        chosen_GSE, most_pairs = self.choose(groups)
        chosen_TE = sequences.join(chosen_GSE, num_tokens)
        # What fills a packed sequence is never chosen: a group takes n K pairs and at most E more.
        rounded_up = len(groups.kept_G) * num_experts
        most_pairs = min(most_pairs, num_tokens * self.spec.top_k + rounded_up)
        weights_TE = torch.where(chosen_TE, scores_TE, 0.0)
        if self.options.renormalise:
            weights_TE = over_their_sum(weights_TE)
        return ragged(x_TD, chosen_TE, weights_TE, scores_TE, context, most_pairs)
