"""DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, balanced by a bias on the choice.

B sequences of S tokens, T = B*S tokens, E experts, K of them for each token, R = E-1 routed
experts, J = K-1 chosen among them, G groups of experts.
"""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import RouterSpec, Routing, RoutingContext, sum_over_ranks
from llava_compete.moe.routers.shared_v2 import SharedV2Router, with_shared
from llava_compete.moe.sequences import Sequences

BEST_OF_GROUP = 2  # a group's score is the sum of so many of its best biased scores


def sequence_balance(
    share_TR: Tensor, ids_TJ: Tensor, sequences: Sequences, mask_T: Tensor | None
) -> Tensor:
    """sum_i f_i P_i of each sequence (eq. 17-20), in the mean over those that keep a token.

    f_i is R/J times the share of the sequence's kept tokens that choose expert i, P_i the mean of
    ``share_TR``, scores that sum to 1. 1 when uniform.
    """
    num_routed = share_TR.shape[-1]
    kept_TR = torch.ones_like(share_TR[:, :1], dtype=torch.bool)
    if mask_T is not None:
        kept_TR = mask_T[:, None]
    kept_BS1 = sequences.split(kept_TR, False)
    tokens_B1 = kept_BS1.sum(dim=1)
    chosen_TR = F.one_hot(ids_TJ, num_routed).sum(dim=1).float()
    chosen_BSR, share_BSR = (
        torch.where(kept_BS1, sequences.split(values_TR, 0.0), 0.0)
        for values_TR in (chosen_TR, share_TR)
    )
    f_BR = chosen_BSR.sum(dim=1) * num_routed / (ids_TJ.shape[1] * tokens_B1.clamp(min=1))
    p_BR = share_BSR.sum(dim=1) / tokens_B1.clamp(min=1)
    return (f_BR * p_BR).sum() / (tokens_B1 > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class SharedV3Options:
    """How experts are chosen and kept in balance."""

    groups: int = 1  # of routed experts, in their order; the paper: 8
    groups_kept: int = 1  # a token chooses inside these alone; the paper: 4
    scaling: float = 1.0  # of the routed experts' weights; the paper: 2.5
    bias_rate: float = 0.001  # step of the bias; the paper's gamma

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups={self.groups} must be at least 1")
        if not 1 <= self.groups_kept <= self.groups:
            raise ValueError(
                f"groups_kept={self.groups_kept} must be between 1 and groups={self.groups}"
            )
        if self.scaling <= 0:
            raise ValueError(f"scaling={self.scaling} must be positive")
        if self.bias_rate < 0:
            raise ValueError(f"bias_rate={self.bias_rate} must not be negative")


class SharedV3Router(SharedV2Router):
    """s = sigmoid(z); the K-1 largest s + b are chosen and weighted by s over their sum.

    b is for the choice alone: it has no gradient and is in no weight. After each optimizer step
    b_e += bias_rate * sign(mean load - load_e), the load being the choices of all kept tokens of
    the step's micro-batches on all ranks. A training that leaves the gate as it is leaves b too.
    With more than one group only the ``groups_kept`` groups with the largest sum of their two best
    s + b are chosen from.

    The shared expert, expert 0, has weight 1/2, the routed ones ``scaling`` / 2 together, so an
    upcycled layer equals the dense one where ``scaling`` is 1. The paper adds the shared expert at
    weight 1 and the routed ones at 2.5: the same ratio as scaling 2.5 here.

    Loss: the paper's complementary sequence-wise balance, weight 1e-4. As in its eq. 18 it counts
    the K-1 largest s, without bias and groups.
    """

    Options = SharedV3Options
    loss_weights = MappingProxyType({"balance": 1e-4})
    options: SharedV3Options
    # int64: b in steps of bias_rate. A whole number, so that no dtype rounds it.
    state_bias_R: Tensor
    # Choices of each routed expert in the step under way, int64, of this rank. Cleared by
    # begin_step, left by forwards, read by end_step. No buffer: DDP would overwrite it with the
    # first rank's.
    load_R: Tensor | None = None

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.sums_to_one = self.options.scaling == 1
        self.register_buffer("state_bias_R", torch.zeros(self.gate_rows(), dtype=torch.int64))

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: SharedV3Options) -> None:
        """ValueError where groups do not divide the routed experts or hold too few of them."""
        super().check(num_experts, top_k, options)
        routed = num_experts - 1
        if routed % options.groups:
            raise ValueError(
                f"groups={options.groups} must divide the {routed} routed experts "
                f"(num_experts={num_experts} less the shared one)"
            )
        within = options.groups_kept * routed // options.groups
        if top_k - 1 > within:
            raise ValueError(
                f"top_k={top_k} needs {top_k - 1} routed experts, and groups_kept="
                f"{options.groups_kept} of groups={options.groups} hold {within}"
            )

    def reset_parameters(self) -> None:
        """The gate as TopKRouter's; no bias."""
        super().reset_parameters()
        for state in self.buffers():  # none yet while the gate is being built
            state.zero_()

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        logits_TR = self.gate(x_TD).float()
        scores_TR = logits_TR.sigmoid().detach() + self.bias()
        ids_TJ = self._choose(scores_TR)
        if self.training and context.recording and self.gate.weight.requires_grad:
            self._count(ids_TJ, context.mask_T)
        # Of sigmoids the share of their sum, also where all of them are 0 in float32.
        log_TR = F.logsigmoid(logits_TR)
        weights_TJ = log_TR.gather(1, ids_TJ).softmax(dim=-1) * self.options.scaling
        unbiased_TJ = logits_TR.topk(self.spec.top_k - 1, dim=-1).indices
        sequences = context.sequences or Sequences(len(x_TD))
        balance = sequence_balance(log_TR.softmax(dim=-1), unbiased_TJ, sequences, context.mask_T)
        return with_shared(
            Routing(ids_TJ, weights_TJ.to(x_TD.dtype), {"balance": balance}, {}, scores_TR)
        )

    def bias(self) -> Tensor:
        """What is added to the routed experts' scores for the choice, float32 (R,)."""
        return self.options.bias_rate * self.state_bias_R.float()

    def _choose(self, scores_TR: Tensor) -> Tensor:
        options = self.options
        if options.groups_kept < options.groups:
            scores_TGM = scores_TR.unflatten(1, (options.groups, -1))
            best = min(BEST_OF_GROUP, scores_TGM.shape[-1])
            score_TG = scores_TGM.topk(best, dim=-1).values.sum(dim=-1)
            kept_TG = torch.zeros_like(score_TG, dtype=torch.bool)
            kept_TG.scatter_(1, score_TG.topk(options.groups_kept, dim=-1).indices, True)
            scores_TR = scores_TGM.masked_fill(~kept_TG[..., None], float("-inf")).flatten(1)
        return scores_TR.topk(self.spec.top_k - 1, dim=-1).indices

    def _count(self, ids_TJ: Tensor, mask_T: Tensor | None) -> None:
        chosen_TR = F.one_hot(ids_TJ, self.gate_rows()).sum(dim=1)
        if mask_T is not None:
            chosen_TR = chosen_TR * mask_T[:, None]
        load_R = chosen_TR.sum(dim=0)
        self.load_R = load_R if self.load_R is None else self.load_R + load_R

    def begin_step(self, step: int, max_steps: int) -> None:
        """Nothing chosen yet in this step."""
        self.load_R = None

    def end_step(self) -> None:
        """b rises by a step where an expert had less than the mean load, and falls where more."""
        load_R = self.load_R
        if load_R is None:  # no forward; the other ranks wait for this one all the same
            load_R = torch.zeros_like(self.state_bias_R)
        load_R = sum_over_ranks(load_R)
        self.state_bias_R += (load_R.sum() - len(load_R) * load_R).sign()
