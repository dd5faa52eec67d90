"""Gates that learn who wins a competition, from features and affinities that do not move.

T tokens, E experts, K winners per token, D width, H hidden width of a wider gate.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_compete.moe import losses
from llava_compete.moe.routers.compete import agreement


class Outcomes(NamedTuple):
    """What the experts of one layer answered to some tokens."""

    features_TD: Tensor  # float32, the layer's input
    affinity_TE: Tensor  # float32

    def split(self, share: float) -> tuple["Outcomes", "Outcomes"]:
        """The first ``share`` of the tokens and the rest: rows, hence pictures, stay together."""
        cut = int(share * len(self.features_TD))
        first = Outcomes(self.features_TD[:cut], self.affinity_TE[:cut])
        return first, Outcomes(self.features_TD[cut:], self.affinity_TE[cut:])


def standardised(affinity_TE: Tensor) -> Tensor:
    """Affinities of a token at mean 0 and standard deviation 1 over the experts."""
    centred_TE = affinity_TE - affinity_TE.mean(dim=-1, keepdim=True)
    return centred_TE / affinity_TE.std(dim=-1, keepdim=True).clamp(min=1e-12)


def paper(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """The published form (arXiv:2505.13380) with theta 0.1."""
    ids_TK = affinity_TE.topk(top_k, dim=-1).indices
    return losses.distillation(
        logits_TE.softmax(dim=-1), affinity_TE.softmax(dim=-1), ids_TK, theta=0.1
    )


def standardised_mse(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """Squared error to the softmax of standardised affinities."""
    target_TE = standardised(affinity_TE).softmax(dim=-1)
    return (logits_TE.softmax(dim=-1) - target_TE).square().mean()


def standardised_kl(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """KL divergence from the softmax of standardised affinities."""
    target_TE = standardised(affinity_TE).softmax(dim=-1)
    return F.kl_div(logits_TE.log_softmax(dim=-1), target_TE, reduction="batchmean")


def sharp_kl(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """The same at temperature 0.5."""
    target_TE = (standardised(affinity_TE) / 0.5).softmax(dim=-1)
    return F.kl_div(logits_TE.log_softmax(dim=-1), target_TE, reduction="batchmean")


def winners_bce(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """Binary cross-entropy of each expert's winning."""
    ids_TK = affinity_TE.topk(top_k, dim=-1).indices
    won_TE = torch.zeros_like(affinity_TE).scatter(1, ids_TK, 1.0)
    return F.binary_cross_entropy_with_logits(logits_TE, won_TE)


def outcome(logits_TE: Tensor, affinity_TE: Tensor, top_k: int) -> Tensor:
    """KL divergence from the competition's mixing weights: CompeteRouter's ``outcome``."""
    won_TK, ids_TK = affinity_TE.topk(top_k, dim=-1)
    weights_TK = won_TK / won_TK.sum(dim=-1, keepdim=True)
    return losses.outcome_distillation(logits_TE, ids_TK, weights_TK)


Form = Callable[[Tensor, Tensor, int], Tensor]
FORMS: dict[str, Form] = {
    "paper": paper,
    "standardised MSE": standardised_mse,
    "standardised KL": standardised_kl,
    "standardised KL, T=0.5": sharp_kl,
    "winners BCE": winners_bce,
    "outcome": outcome,
}


def make_gate(
    width: int, num_experts: int, *, hidden: int | None = None, seed: int = 0
) -> nn.Module:
    """The router's own gate (linear, no bias, Normal(0, 0.02)), or one with a hidden layer."""
    generator = torch.Generator().manual_seed(seed)
    widths = [width, num_experts] if hidden is None else [width, hidden, num_experts]
    layers: list[nn.Module] = []
    for rows_in, rows_out in pairwise(widths):
        linear = nn.Linear(rows_in, rows_out, bias=False)
        scale = 0.02 if rows_out == num_experts else rows_in**-0.5
        values = torch.randn(linear.weight.shape, generator=generator) * scale
        linear.weight.data.copy_(values)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def distil(
    gate: nn.Module,
    seen: Outcomes,
    form: Form,
    *,
    top_k: int,
    steps: int,
    tokens: int,
    learning_rate: float,
) -> nn.Module:
    """``gate`` after so many competition steps of so many tokens each, by AdamW, as in training."""
    optimizer = torch.optim.AdamW(gate.parameters(), lr=learning_rate, weight_decay=0.0)
    places = max(1, len(seen.features_TD) - tokens + 1)
    for step in range(steps):
        begin = step * tokens % places
        batch = slice(begin, begin + tokens)
        loss = form(gate(seen.features_TD[batch]), seen.affinity_TE[batch], top_k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate


@torch.no_grad()
def held_out_agreement(gate: nn.Module, unseen: Outcomes, top_k: int) -> float:
    """Share of the winners that the gate names too."""
    named_TK = gate(unseen.features_TD).topk(top_k, dim=-1).indices
    winners_TK = unseen.affinity_TE.topk(top_k, dim=-1).indices
    return float(agreement(named_TK, winners_TK, None))


def linear_bound(seen: Outcomes, unseen: Outcomes, top_k: int, *, steps: int = 400) -> float:
    """Held-out agreement of a linear gate with bias, fitted to the winners of all seen tokens.

    Adam on standardised features, batches of 2048, learning rate falling from 0.02 to 0. An
    estimate of what any linear gate can reach: on few tokens it overfits and is too low.
    """
    mean_D = seen.features_TD.mean(dim=0)
    std_D = seen.features_TD.std(dim=0).clamp(min=1e-6)
    inputs_TD = (seen.features_TD - mean_D) / std_D
    linear = nn.Linear(inputs_TD.shape[1], seen.affinity_TE.shape[1])
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.02)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(inputs_TD), (2048,), generator=generator)
        loss = winners_bce(linear(inputs_TD[rows]), seen.affinity_TE[rows], top_k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    standard = Outcomes((unseen.features_TD - mean_D) / std_D, unseen.affinity_TE)
    return held_out_agreement(linear, standard, top_k)
