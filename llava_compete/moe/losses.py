"""Losses on routing decisions.  T tokens, E experts, K chosen per token, D width.

Each is a mean over the tokens that ``mask_T`` keeps, in float32, and 0 (with a graph) where it
keeps none. ``mask_T`` None keeps all.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llava_compete.moe.elementwise import at_least_float32


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
    # scatter_add_, not bincount: bincount waits for the device. Whole numbers: any order is exact.
    kept_TK = torch.ones_like(ids_TK)
    if mask_T is not None:
        kept_TK = mask_T[:, None].to(ids_TK.dtype).expand_as(ids_TK)
    count_G = ids_TK.new_zeros(num_experts + 1)
    count_G.scatter_add_(0, ids_TK.reshape(-1), kept_TK.reshape(-1))
    count_E = count_G[:num_experts].float()
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


def diversity(outputs_TKO: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Mean cosine of the winners' outputs over the K(K-1) ordered pairs (arXiv:2505.13380).

    The official code divides by K*K and so has half of this at K=2. K=1 has no pair: 0.
    """
    top_k = outputs_TKO.shape[1]
    share = 1 / (top_k * (top_k - 1)) if top_k > 1 else 0.0
    return mean_over_tokens(_SumOfCosines.apply(outputs_TKO), mask_T) * share


class _SumOfCosines(torch.autograd.Function):
    """Of a token's outputs, over ordered pairs: |sum_k u_k|^2 - sum_k |u_k|^2, u_k of length 1.

    Autograd would keep float32 copies of all outputs; this keeps the outputs as they are.
    """

    @staticmethod
    def forward(ctx: Any, outputs_TKO: Tensor) -> Tensor:
        norm_TK = torch.linalg.vector_norm(outputs_TKO, dim=-1, dtype=at_least_float32(outputs_TKO))
        scale_TK = norm_TK.reciprocal().where(norm_TK > 0, 0.0)  # an output of 0 has no direction
        ctx.save_for_backward(outputs_TKO, scale_TK)
        sum_TO = _weighted_sum(outputs_TKO, scale_TK)
        return sum_TO.square().sum(dim=-1) - (scale_TK > 0).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> Tensor:
        """2 / |o_k| * (s - (s . u_k) u_k), s the sum of the u: none along the output itself."""
        outputs_TKO, scale_TK = ctx.saved_tensors
        sum_TO = _weighted_sum(outputs_TKO, scale_TK)
        grad_TKO = torch.empty_like(outputs_TKO)
        for k, output_TO in enumerate(outputs_TKO.unbind(dim=1)):
            unit_TO = scale_TK[:, k, None] * output_TO
            along_T1 = (sum_TO * unit_TO).sum(dim=-1, keepdim=True)
            of_sum_T1 = (2 * grad_T * scale_TK[:, k])[:, None]
            grad_TKO[:, k] = of_sum_T1 * (sum_TO - along_T1 * unit_TO)
        return grad_TKO


def _weighted_sum(outputs_TKO: Tensor, weights_TK: Tensor) -> Tensor:
    """Sum over K in the dtype of the weights, (T, O)."""
    sum_TO = weights_TK[:, 0, None] * outputs_TKO[:, 0]
    for k in range(1, outputs_TKO.shape[1]):
        sum_TO += weights_TK[:, k, None] * outputs_TKO[:, k]
    return sum_TO
