"""ACMoE (arXiv:2502.15315): tokens are scaled by how tightly their cluster lies along a feature.

T tokens, E experts = clusters, K chosen per token, D width = features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import RouterSpec, Routing, RoutingContext, sum_over_ranks
from llava_compete.moe.routers.topk import TopKRouter

EPSILON = 1e-4  # added to a spread before it is inverted
LARGEST = 10.0  # no scale before normalisation is larger than this many times the mean one
LEAST_TOKENS = 2  # of a cluster that has a spread


@dataclass(frozen=True)
class ACMoEOptions:
    """Hyper-parameters of the adaptive clustering router."""

    momentum: float = 0.95  # of the running average of the scales that inference uses

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1")


@torch.no_grad()
def cluster_scales(
    x_TD: Tensor, cluster_T: Tensor, mask_T: Tensor | None, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """Scales W of every cluster's features (E, D), dtype of x, and its kept tokens (E,).

    MAD_kq = mean of |x_tq - mean_kq| over the tokens t of cluster k; V = 1 / (MAD + 1e-4), no
    larger than 10 times V's mean over all k and q; W_kq = V_kq / mean over k of V_kq. A cluster of
    fewer than two tokens is left out of both means; its W is 1. No gradient.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        member_TE = F.one_hot(cluster_T, num_clusters)
        if mask_T is not None:
            member_TE = member_TE * mask_T[:, None]
            x_TD = torch.where(mask_T[:, None], x_TD, 0.0)
        count_E = member_TE.sum(dim=0)
        share_ET = (member_TE.to(x_TD.dtype) / count_E.clamp(min=1)).T
        deviation_TD = (x_TD - (share_ET @ x_TD)[cluster_T]).abs()
        found_E1 = count_E[:, None] >= LEAST_TOKENS
        scale_ED = torch.where(found_E1, 1 / (share_ET @ deviation_TD + EPSILON), 0.0)
        found = found_E1.sum().clamp(min=1)
        scale_ED = torch.minimum(scale_ED, LARGEST * scale_ED.mean(dim=1).sum() / found)
        return torch.where(found_E1, scale_ED * found / scale_ED.sum(dim=0), 1.0), count_E


class ACMoERouter(TopKRouter):
    """z = G (h * W_c(t)), then plain top-K; c(t) is the token's first expert one MoE layer before.

    W_k, see ``cluster_scales``, is large along the features in which the tokens of cluster k lie
    close together. G is the linear gate of ``topk``: the first MoE layer of a part, which has no
    clusters, is that router. Losses are those of ``topk``.

    The paper's code has two gates on h * W: a linear one, as here, and XMoE's cosine; and other
    measures of spread (variance, mean pairwise distance) and mixtures with the layer before.

    Where this departs:

    - In training W is that of the batch's kept tokens on this rank, as in the paper. The paper's
      inference takes it from the evaluated batch too, so that a token's experts depend on later
      tokens and on its neighbours in the batch, and a single decoded token has no spread. Here
      evaluation uses ``state_scale_ED``, a running average of training's W: it sees one token at
      a time. Until the first optimizer step it is 1, which is ``topk``.
    - The average moves once an optimizer step, towards the mean of the step's W over micro-batches
      and ranks, weighted by the tokens of the cluster, and only for clusters that had two. The
      first updates are averaged evenly, so that the start leaves no trace.
    - A cluster of one token has no spread: V would be 1e4 along every feature, and after the
      normalisation every other cluster's W almost 0. Its W is 1, like that of an empty cluster.
    """

    Options = ACMoEOptions
    needs_previous = True
    options: ACMoEOptions
    state_scale_ED: Tensor  # float32: W at inference
    state_updates_E: Tensor  # int64: how often each row has moved

    # Sums over the step's forwards of (W times tokens, tokens) by cluster, (E, D + 1) float32. No
    # buffer: DDP would overwrite it with the first rank's.
    _seen_EF: Tensor | None = None

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        if spec.previous is not None:
            # float() behind it: under ZeRO-3 a new tensor comes in the model's dtype.
            scale_ED = torch.ones(spec.num_experts, spec.width).float()
            self.register_buffer("state_scale_ED", scale_ED)
            self.register_buffer("state_updates_E", torch.zeros(spec.num_experts).long())

    def reset_parameters(self) -> None:
        """The gate as topk's; scales of 1 that no step has moved."""
        super().reset_parameters()
        for name, value in (("state_scale_ED", 1), ("state_updates_E", 0)):
            if name in self._buffers:  # not before __init__ has made it, nor in the first layer
                self.get_buffer(name).fill_(value)
        self._seen_EF = None

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        if self.spec.previous is None:
            return super().forward(x_TD, experts, context)
        assert context.previous_T is not None, "the MoE layer before has not run"
        scale_TD = self._scales(x_TD, context)[context.previous_T]
        logits_TE = self.gate((x_TD.float() * scale_TD).to(x_TD.dtype)).float()
        return self.route(x_TD, logits_TE, logits_TE.softmax(dim=-1), context)

    def _scales(self, x_TD: Tensor, context: RoutingContext) -> Tensor:
        if not self.training:
            return self.state_scale_ED
        assert context.previous_T is not None
        scale_ED, count_E = cluster_scales(
            x_TD.float(), context.previous_T, context.mask_T, self.spec.num_experts
        )
        if context.recording:
            count_E1 = torch.where(count_E >= LEAST_TOKENS, count_E, 0)[:, None].float()
            seen_EF = torch.cat([scale_ED * count_E1, count_E1], dim=1)
            self._seen_EF = seen_EF if self._seen_EF is None else self._seen_EF + seen_EF
        return scale_ED

    @torch.no_grad()
    def end_step(self) -> None:
        """Move ``state_scale_ED`` towards what the step's forwards, on all ranks, have seen."""
        if self.spec.previous is None:
            return
        if self._seen_EF is None:  # no forward; the other ranks wait for this one all the same
            self._seen_EF = F.pad(torch.zeros_like(self.state_scale_ED), (0, 1))
        seen_EF = sum_over_ranks(self._seen_EF)
        self._seen_EF = None
        count_E1 = seen_EF[:, -1:]
        mean_ED = seen_EF[:, :-1] / count_E1.clamp(min=1)
        updates_E1 = self.state_updates_E[:, None]
        momentum_E1 = (updates_E1 / (updates_E1 + 1)).clamp(max=self.options.momentum)
        moved_ED = self.state_scale_ED.lerp(mean_ED, 1 - momentum_E1)
        self.state_scale_ED.copy_(torch.where(count_E1 > 0, moved_ED, self.state_scale_ED))
        self.state_updates_E += count_E1[:, 0] > 0
