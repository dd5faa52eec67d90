"""Expert Race (arXiv:2503.16057): all pairs of token and expert of a batch race for the places.

T tokens, E experts, K per token in the mean.
"""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from llava_compete.moe.routers.across import best_pairs, grouped, ragged
from llava_compete.moe.routers.base import RouterSpec, Routing, RoutingContext, sum_over_ranks
from llava_compete.moe.routers.topk import TopKRouter
from llava_compete.moe.sequences import Sequences


def similarity(probs_TE: Tensor, chosen_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Router similarity loss: experts chosen often together are to be told apart.

    sum_ij W_ij (p^T p)_ij / n of n tokens, p their probabilities. With M = chosen^T chosen, W_ii
    is E M_ii over the diagonal's sum, and W_ij (E^2 - E) M_ij over the sum of the others. 1 when
    all is uniform, and where no token has two experts the diagonal's part alone. No gradient
    through W.
    """
    num_tokens = torch.full((), len(probs_TE), device=probs_TE.device)
    if mask_T is not None:
        probs_TE = torch.where(mask_T[:, None], probs_TE, 0.0)
        chosen_TE = chosen_TE & mask_T[:, None]
        num_tokens = mask_T.sum()
    num_experts = probs_TE.shape[-1]
    chosen_TE = chosen_TE.to(probs_TE.dtype)
    with torch.autocast(probs_TE.device.type, enabled=False):
        alike_EE = probs_TE.T @ probs_TE
        together_EE = chosen_TE.T @ chosen_TE
    own_E = together_EE.diagonal()
    others = together_EE.sum() - own_E.sum()
    weight_EE = together_EE * (num_experts**2 - num_experts) / others.clamp(min=1)
    weight_EE = weight_EE.diagonal_scatter(num_experts * own_E / own_E.sum().clamp(min=1))
    return (weight_EE * alike_EE).sum() / num_tokens.clamp(min=1)


@dataclass(frozen=True)
class ExpertRaceOptions:
    """How the threshold of inference follows that of training."""

    momentum: float = 0.95  # share of its moving average that an optimizer step keeps

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and less than 1")


class ExpertRaceRouter(TopKRouter):
    """In training the n K largest logits of a batch of n tokens; at inference those above tau.

    z is a linear gate's. The weight of a chosen pair is z itself, which may be negative: a fresh
    gate, Normal(0, 0.02), gives weights near 0, so upcycling moves the output far. tau is the
    moving average of the smallest chosen logit. Training looks across tokens and sequences;
    inference takes each token alone, any number of experts for it, so it can generate text. Of
    equal logits in training the earlier token's is taken, then the lower expert's.

    The similarity loss has the coefficient 1e-4 (one public re-implementation has 1e-5; the
    paper's own was not found, and there is no official code).

    Departures: a batch is one rank's micro-batch, padding left out, and the logits of the ranks
    are not gathered. tau moves once an optimizer step, by the mean of the micro-batches' values
    on all ranks, each with the weight of its tokens, where the sources gather or move at each
    forward. It begins with the first step's value, not as an average from 1: until then it is 0,
    which half of a fresh gate's logits exceed. The gate is linear, not an MLP of two layers, and
    the per-layer regularisation on the diffusion target, which that MLP serves, is not here.
    """

    Options = ExpertRaceOptions
    loss_weights = MappingProxyType({"similarity": 1e-4})
    sums_to_one = False
    state_threshold: Tensor  # float32 (); tau
    state_steps: Tensor  # float32 (); steps that tau has seen
    # Of the optimizer step under way, (2,) float32: its tokens, and the sum of their batches'
    # smallest chosen logits. Cleared by begin_step, left by forwards, read by end_step.
    raced_2: Tensor | None = None

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        # float() behind it: under ZeRO-3 a new tensor comes in the model's dtype.
        self.register_buffer("state_threshold", torch.zeros(()).float())
        self.register_buffer("state_steps", torch.zeros(()).float())

    def reset_parameters(self) -> None:
        """The gate as TopKRouter's; the state 0."""
        super().reset_parameters()
        for state in self.buffers():  # none yet while the gate is being built
            state.zero_()

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        """The race in training, the threshold at inference; weights are the logits."""
        if self.training:
            chosen_TE = self._race(logits_TE.detach(), context)
            most_pairs = len(x_TD) * self.spec.top_k
        else:
            chosen_TE = logits_TE >= self.state_threshold
            if context.mask_T is not None:
                chosen_TE = chosen_TE & context.mask_T[:, None]
            most_pairs = chosen_TE.numel()
        routing = ragged(x_TD, chosen_TE, logits_TE, logits_TE, context, most_pairs)
        loss = similarity(probs_TE, chosen_TE, context.mask_T)
        return routing._replace(losses={"similarity": loss})

    def _race(self, logits_TE: Tensor, context: RoutingContext) -> Tensor:
        groups = grouped(logits_TE, Sequences(len(logits_TE)), context.mask_T)
        chosen_TE = best_pairs(groups, self.spec.top_k)[0]
        if context.recording:
            smallest = logits_TE.masked_fill(~chosen_TE, float("inf")).amin()
            tokens = groups.kept_G[0].float()
            summed = torch.where(tokens > 0, tokens * smallest, 0.0)
            raced_2 = torch.stack([tokens, summed])
            self.raced_2 = raced_2 if self.raced_2 is None else self.raced_2 + raced_2
        return chosen_TE

    def begin_step(self, step: int, max_steps: int) -> None:
        """Nothing seen yet in this step."""
        self.raced_2 = None

    def end_step(self) -> None:
        """tau moves to the mean that all ranks saw; where none saw a token it stays."""
        raced_2 = self.raced_2
        if raced_2 is None:
            raced_2 = torch.zeros(2, device=self.state_threshold.device)
        tokens, summed = sum_over_ranks(raced_2)
        kept = torch.where(self.state_steps > 0, self.options.momentum, 0.0)
        moved = kept * self.state_threshold + (1 - kept) * summed / tokens.clamp(min=1)
        self.state_threshold.copy_(torch.where(tokens > 0, moved, self.state_threshold))
        self.state_steps += tokens > 0
