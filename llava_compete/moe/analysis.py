"""Figures of what a router did: for each token, and summed over tokens.

T tokens, E experts, K columns of ids (a ragged router's K is E), O output width. docs/analysis.md
says what each figure is good for; margin, DropTop1, change rate, allocation entropy and
co-activation are names of LibMoE (arXiv:2411.00918), the definitions are those written here.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_compete.moe.elementwise import affinity
from llava_compete.moe.routers.base import Routing

NAN = math.nan


class Replacement(NamedTuple):
    """The chosen expert that a token ranks first, and the best one that it did not choose."""

    first_T: Tensor  # int64; E where there is nothing to replace, or nothing to replace it by
    next_T: Tensor  # int64; E in the same places
    weight_T: Tensor  # of the first, in the dtype of the routing's weights; 0 in those places


class TokenFigures(NamedTuple):
    """What is said of each token; NaN where a figure has no meaning for it."""

    chosen_TE: Tensor  # bool
    won_TE: Tensor  # bool; the competition's winners, as many as the token has experts
    margin_T: Tensor
    relative_margin_T: Tensor  # of the scores' range, so that routers can be compared
    agreement_T: Tensor
    chance_T: Tensor
    drop_top1_T: Tensor
    unit_TEO: Tensor  # outputs of all experts at length 1


def chosen_experts(ids_TK: Tensor, num_experts: int) -> Tensor:
    """Which experts take the token, bool (T, E); an id of E names none."""
    taken_TG = ids_TK.new_zeros(len(ids_TK), num_experts + 1, dtype=torch.bool)
    return taken_TG.scatter_(1, ids_TK, True)[:, :num_experts]


def margins(scores_TE: Tensor, chosen_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest chosen score less the best unchosen one, and that over the range of the scores.

    Both (T,). Negative where the router passed a better score by (a group or capacity limit). NaN
    where no expert is chosen, where none is left, or where those left are forbidden (score -inf);
    the second also where all scores are equal. Scores that are not finite have no part in the
    range.
    """
    lowest_T = scores_TE.masked_fill(~chosen_TE, math.inf).amin(dim=-1)
    best_T = scores_TE.masked_fill(chosen_TE, -math.inf).amax(dim=-1)
    margin_T = lowest_T - best_T
    margin_T = torch.where(margin_T.isfinite(), margin_T, NAN)
    finite_TE = scores_TE.isfinite()
    high_T = scores_TE.masked_fill(~finite_TE, -math.inf).amax(dim=-1)
    range_T = high_T - scores_TE.masked_fill(~finite_TE, math.inf).amin(dim=-1)
    return margin_T, torch.where(range_T > 0, margin_T / range_T, NAN)


def winners(outputs_TEO: Tensor, chosen_TE: Tensor) -> Tensor:
    """The experts of the largest affinity, as many as the token has, bool (T, E)."""
    order_TE = affinity(outputs_TEO).argsort(dim=-1, descending=True, stable=True)
    return order_TE.argsort(dim=-1) < chosen_TE.sum(dim=-1, keepdim=True)


def agreement(chosen_TE: Tensor, won_TE: Tensor) -> Tensor:
    """Share of a token's experts that a competition would have chosen too, (T,).

    Of a routing with K for every token this is what compete.agreement averages. NaN where a token
    has no expert.
    """
    return (chosen_TE & won_TE).sum(dim=-1) / chosen_TE.sum(dim=-1)


def replacement(routing: Routing) -> Replacement:
    """DropTop1: who goes and who comes.

    The (K+1)-th expert takes the place of the first, and its weight, so that the sum of weights
    stays what it was whatever the router. An expert that is always on (score inf) is not ranked.
    """
    scores_TE = routing.scores_TE
    num_experts = scores_TE.shape[-1]
    chosen_TE = chosen_experts(routing.ids_TK, num_experts)
    ranked_TE = chosen_TE & scores_TE.isfinite()
    left_TE = ~chosen_TE & scores_TE.isfinite()
    possible_T = ranked_TE.any(dim=-1) & left_TE.any(dim=-1)
    first_T, next_T = (
        torch.where(possible_T, among_TE.argmax(dim=-1), num_experts)
        for among_TE in (
            scores_TE.masked_fill(~ranked_TE, -math.inf),
            scores_TE.masked_fill(~left_TE, -math.inf),
        )
    )
    at_TK = (routing.ids_TK == first_T[:, None]) & possible_T[:, None]
    return Replacement(first_T, next_T, (routing.weights_TK * at_TK).sum(dim=-1))


def drop_top1(routing: Routing, outputs_TEO: Tensor, y_TO: Tensor) -> Tensor:
    """Length of the change that DropTop1 makes, over that of the layer's output ``y_TO``, (T,)."""
    first_T, next_T, weight_T = replacement(routing)
    rows_T, last = torch.arange(len(y_TO), device=y_TO.device), outputs_TEO.shape[1] - 1
    came_TO = outputs_TEO[rows_T, next_T.clamp(max=last)].float()
    went_TO = outputs_TEO[rows_T, first_T.clamp(max=last)].float()
    change_T = weight_T.float().abs() * (came_TO - went_TO).norm(dim=-1)
    return torch.where(next_T <= last, change_T / y_TO.float().norm(dim=-1), NAN)


def token_figures(routing: Routing, outputs_TEO: Tensor, y_TO: Tensor) -> TokenFigures:
    """All figures of a forward; ``outputs_TEO`` are every expert's, ``y_TO`` the layer's."""
    num_experts = outputs_TEO.shape[1]
    chosen_TE = chosen_experts(routing.ids_TK, num_experts)
    won_TE = winners(outputs_TEO, chosen_TE)
    margin_T, relative_T = margins(routing.scores_TE, chosen_TE)
    taken_T = chosen_TE.sum(dim=-1)
    return TokenFigures(
        chosen_TE=chosen_TE,
        won_TE=won_TE,
        margin_T=margin_T,
        relative_margin_T=relative_T,
        agreement_T=agreement(chosen_TE, won_TE),
        chance_T=torch.where(taken_T > 0, taken_T / num_experts, NAN),
        drop_top1_T=drop_top1(routing, outputs_TEO, y_TO),
        unit_TEO=F.normalize(outputs_TEO.float(), dim=-1),
    )


class Tally:
    """Sums of the figures over tokens: of one size however many tokens there were."""

    MEANS = ("margin", "relative_margin", "agreement", "chance", "drop_top1", "changed")

    def __init__(self, num_experts: int, device: torch.device | None = None) -> None:
        shapes: dict[str, tuple[int, ...]] = {"tokens": (1,)}
        shapes |= dict.fromkeys(("chosen", "dealt", "won"), (num_experts,))
        shapes |= dict.fromkeys(("together", "cosine"), (num_experts, num_experts))
        shapes |= dict.fromkeys(self.MEANS, (2,))  # sum, and how many tokens it is of
        self.num_experts = num_experts
        self.sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    def add(self, figures: TokenFigures, rows_T: Tensor) -> None:
        """Count the tokens that ``rows_T``, bool (T,), keeps."""
        chosen_TE = figures.chosen_TE[rows_T].double()
        unit_ETO = figures.unit_TEO[rows_T].transpose(0, 1)
        self.sums["tokens"] += len(chosen_TE)
        self.sums["chosen"] += chosen_TE.sum(dim=0)
        # A token's experts share it: the weight that makes the mean of agreement_T factorise.
        dealt_TE = chosen_TE / chosen_TE.sum(dim=-1, keepdim=True).clamp(min=1)
        self.sums["dealt"] += dealt_TE.sum(dim=0)
        self.sums["won"] += figures.won_TE[rows_T].double().sum(dim=0)
        self.sums["together"] += chosen_TE.T @ chosen_TE
        self.sums["cosine"] += (unit_ETO.flatten(1) @ unit_ETO.flatten(1).T).double()
        for name in self.MEANS:
            if name != "changed":  # needs a second checkpoint
                self.add_mean(name, getattr(figures, f"{name}_T")[rows_T])

    def add_mean(self, name: str, values_N: Tensor) -> None:
        """Count values of one of MEANS; those that are NaN are left out."""
        counted_N = ~values_N.isnan()
        total = values_N.double().nansum()
        self.sums[name] += torch.stack([total, counted_N.double().sum()])

    def __add__(self, other: "Tally") -> "Tally":
        both = Tally(self.num_experts)
        both.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return both

    def figures(self) -> dict[str, Any]:
        """Plain numbers and lists; NaN where there was nothing to take a mean of.

        ``load`` (E,) is each expert's share of the (token, expert) pairs, ``entropy`` that of the
        load over log E. ``coactivation`` (E, E): of the tokens that take the row's expert, the
        share that take the column's too. ``similarity`` (E, E): mean cosine of the outputs of two
        experts for the same token. ``agreement_shuffled``: the agreement if the choices were dealt
        out anew among the tokens, so that the loads alone make it.
        """
        sums = self.sums
        tokens = sums["tokens"].item()
        load_E = sums["chosen"] / sums["chosen"].sum()
        means = {name: (sums[name][0] / sums[name][1]).item() for name in self.MEANS}
        routed = sums["chance"][1]  # tokens with an expert
        return {
            "tokens": int(tokens),
            "load": load_E.tolist(),
            "entropy": allocation_entropy(load_E),
            "experts_per_token": sums["chosen"].sum().item() / tokens if tokens else NAN,
            **means,
            "agreement_shuffled": (sums["dealt"] @ sums["won"] / routed**2).item(),
            "coactivation": (sums["together"] / sums["chosen"][:, None]).tolist(),
            "similarity": (sums["cosine"] / sums["tokens"]).tolist(),
        }


def allocation_entropy(load_E: Tensor) -> float:
    """Entropy of a load that sums to 1, over log E: 1 when even, 0 when one expert takes all."""
    if len(load_E) == 1:
        return 1.0
    return (torch.special.entr(load_E).sum() / math.log(len(load_E))).item()


def load_gap(load_E: Sequence[float], other_E: Sequence[float]) -> float:
    """Half the summed difference of two loads (total variation): 0 alike, 1 no expert shared."""
    return sum(abs(share - other) for share, other in zip(load_E, other_E, strict=True)) / 2
