"""Losses on routing decisions.  T tokens, E experts, K chosen per token, D width.

Each is a mean over the tokens that ``mask_T`` keeps, in float32, and 0 (with a graph) where it
keeps none. ``mask_T`` None keeps all.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_over_tokens(values_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """Mean of the kept tokens; 0 where none is kept, never NaN."""
    if mask_T is None:
        return values_T.mean()
    # where, not a product: a padding token's value may be inf or NaN.
    kept_T = torch.where(mask_T, values_T, 0.0)
    return kept_T.sum() / mask_T.sum().clamp(min=1)


def choice_share(ids_TK: Tensor, num_experts: int, mask_T: Tensor | None) -> Tensor:
    """Share of the (token, choice) pairs that each expert receives, float32 (E,); sums to 1.

    Pairs with id ``num_experts`` (no expert) are not counted; no kept pair at all gives zeros.
    """
    # one_hot, not bincount: bincount waits for the device.
    chosen_TKE = F.one_hot(ids_TK, num_experts + 1)[..., :num_experts]
    if mask_T is not None:
        chosen_TKE = chosen_TKE * mask_T[:, None, None]
    count_E = chosen_TKE.sum(dim=(0, 1)).float()
    return count_E / count_E.sum().clamp(min=1)


def load_balance(probs_TE: Tensor, ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Switch balance loss E * sum_e f_e * P_e (arXiv:2101.03961, eq. 4); 1 when uniform.

    f_e is the share of all K choices that expert e receives, P_e its mean probability, both over
    the kept tokens of the whole batch. The official CompeteSMoE code counts the first choice only
    and averages the product per sample; docs/papers.md has the difference.
    """
    num_experts = probs_TE.shape[-1]
    share_E = choice_share(ids_TK, num_experts, mask_T)
    if mask_T is None:
        mean_E = probs_TE.float().mean(dim=0)
    else:
        kept_TE = torch.where(mask_T[:, None], probs_TE.float(), 0.0)
        mean_E = kept_TE.sum(dim=0) / mask_T.sum().clamp(min=1)
    return num_experts * (share_E * mean_E).sum()


def router_z(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Squared log-partition of the router's logits (ST-MoE, arXiv:2202.08906, eq. 5)."""
    return mean_over_tokens(logits_TE.float().logsumexp(dim=-1).square(), mask_T)


def distillation(
    student_TE: Tensor,
    teacher_TE: Tensor,
    winner_ids_TK: Tensor,
    *,
    theta: float,
    mask_T: Tensor | None = None,
) -> Tensor:
    """Pull the router's probabilities towards the competition's (CompeteSMoE, arXiv:2505.13380).

    Mean squared error over all E probabilities, plus ``theta`` times the mean squared error over
    the K winners' entries. The teacher is a target: no gradient reaches the experts through it.
    """
    error_TE = (student_TE.float() - teacher_TE.detach().float()).square()
    error_T = error_TE.mean(dim=-1) + theta * error_TE.gather(-1, winner_ids_TK).mean(dim=-1)
    return mean_over_tokens(error_T, mask_T)


def outcome_distillation(
    logits_TE: Tensor,
    winner_ids_TK: Tensor,
    winner_weights_TK: Tensor,
    mask_T: Tensor | None = None,
) -> Tensor:
    """KL divergence of the router's softmax from the competition's own mixing weights.

    sum_k w_k (log w_k - log p_k) over the K winners, whose weights w sum to 1; losers have weight
    0. It is 0 where the router mixes as the competition did. The weights are a target: no gradient
    reaches the experts through them. The form is this project's (docs/results.md has why): the
    affinities of upcycled experts differ by parts in a thousand, so their softmax hardly differs
    from 1/E, and the squared error to it has next to no gradient.
    """
    target_TK = winner_weights_TK.detach().float()
    chosen_TK = logits_TE.float().log_softmax(dim=-1).gather(-1, winner_ids_TK)
    return mean_over_tokens((target_TK * (target_TK.log() - chosen_TK)).sum(dim=-1), mask_T)


def diversity(outputs_TKD: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Mean cosine of the winners' outputs over the K(K-1) ordered pairs (arXiv:2505.13380).

    The official code divides by K*K and so has half of this at K=2. K=1 has no pair: 0.
    """
    top_k = outputs_TKD.shape[1]
    if top_k == 1:
        return outputs_TKD.float().sum() * 0.0
    unit_TKD = F.normalize(outputs_TKD.float(), dim=-1)
    # sum_{i != j} u_i . u_j = |sum_i u_i|^2 - sum_i |u_i|^2: no (K, K) matrix per token.
    square_T = unit_TKD.sum(dim=1).square().sum(dim=-1)
    return mean_over_tokens(
        (square_T - unit_TKD.square().sum(dim=(1, 2))) / (top_k * (top_k - 1)), mask_T
    )
