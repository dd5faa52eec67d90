"""AdaMoE (arXiv:2406.13233): null experts, which do nothing, let a token take fewer real ones.

T tokens, E experts, M null experts, N = E+M, C choices of a token among them.
"""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from llava_compete.moe import losses
from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.across import ragged
from llava_compete.moe.routers.base import Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter


def null_balance(
    probs_TN: Tensor, ids_TC: Tensor, num_experts: int, mask_T: Tensor | None = None
) -> Tensor:
    """N * sum_i f_i P_i, in which every null expert has the null experts' mean f; 1 when uniform.

    f_i is the share of all choices that i receives, P_i its mean probability. So the number of
    null choices is held, and not which null expert they name.
    """
    num_all = probs_TN.shape[-1]
    share_N = losses.choice_share(ids_TC, num_all, mask_T)
    null_M = share_N[num_experts:].mean().expand(num_all - num_experts)
    share_N = torch.cat([share_N[:num_experts], null_M])
    return num_all * losses.mean_over_tokens((probs_TN * share_N).sum(dim=-1), mask_T)


@dataclass(frozen=True)
class AdaMoEOptions:
    """How many null experts there are, and how many of all experts a token chooses."""

    null_experts: int | None = None  # M; None: as many as experts, the paper's 8 for 8
    choices: int | None = None  # C, the paper's k; None: K (E+M) / E

    def __post_init__(self) -> None:
        for name in ("null_experts", "choices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def nulls(self, num_experts: int) -> int:
        """M."""
        return num_experts if self.null_experts is None else self.null_experts

    def chosen(self, num_experts: int, top_k: int) -> int:
        """C; ValueError where it is no whole number or more than there are experts."""
        nulls = self.nulls(num_experts)
        whole, rest = divmod(top_k * (num_experts + nulls), num_experts)
        if self.choices is None and rest:
            raise ValueError(
                f"top_k={top_k} experts in the mean are {top_k} * ({num_experts} + {nulls}) / "
                f"{num_experts} choices among {num_experts} experts and null_experts={nulls}, "
                f"which is no whole number: say choices, or take null_experts={num_experts}"
            )
        choices = whole if self.choices is None else self.choices
        if choices > num_experts + nulls:
            raise ValueError(
                f"choices={choices} must be at most {num_experts + nulls}: num_experts="
                f"{num_experts} and null_experts={nulls}"
            )
        return choices


class AdaMoERouter(TopKRouter):
    """The C largest of E+M logits; a token's experts are the real ones among them.

    Their weights are the softmax over them, which is what the paper's renormalising gives. A token
    whose choices are all null has no expert and passes the layer by the residual connection alone,
    so upcycling moves the output of such tokens.

    **K is the mean number of experts of a token under even load**: C = K (E+M) / E, so that active
    parameters compare with other routers' at the same K, as in the paper's figure 2 (top-2 becomes
    the best 4 of 4 experts and 4 nulls). A token has between 0 and min(C, E); the metric
    ``experts_per_token`` says how many in the mean. The paper's main setting for Mixtral, C = 3
    with M = 8 for E = 8, has 1.5 under even load (1.66 measured): ``choices`` 3 and top_k 2 say
    it, and then K is that of the baseline.

    Loss: balance over all E+M with the null experts' loads averaged. Its weight is 1e-3, as in the
    released code for fresh routers (LoRA experts); that for Mixtral's trained router has 1e-4. In
    the released code the line that is to average the null loads leaves them as they are; here they
    are averaged, as in the paper.
    """

    Options = AdaMoEOptions
    loss_weights = MappingProxyType({"balance": 1e-3})
    sums_to_one = False
    options: AdaMoEOptions

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: AdaMoEOptions) -> None:
        """ValueError where the number of choices does not fit."""
        options.chosen(num_experts, top_k)

    def gate_rows(self) -> int:
        """Things the gate scores: the experts, then the null experts."""
        return self.spec.num_experts + self.options.nulls(self.spec.num_experts)

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        num_experts = self.spec.num_experts
        choices = self.options.chosen(num_experts, self.spec.top_k)
        logits_TN = self.gate(x_TD).float()
        ids_TC = logits_TN.topk(choices, dim=-1).indices
        chosen_TN = torch.zeros_like(logits_TN, dtype=torch.bool).scatter_(1, ids_TC, True)
        logits_TE, chosen_TE = logits_TN[:, :num_experts], chosen_TN[:, :num_experts]
        real_TE = logits_TE.masked_fill(~chosen_TE, float("-inf"))
        # A softmax over nothing is NaN; ``ragged`` sets the weights of these tokens to 0.
        real_TE = torch.where(chosen_TE.any(dim=-1, keepdim=True), real_TE, 0.0)
        weights_TE, most_pairs = real_TE.softmax(dim=-1), len(x_TD) * choices
        routing = ragged(x_TD, chosen_TE, weights_TE, logits_TE, context, most_pairs)
        taken_T = chosen_TE.sum(dim=-1).float()
        per_token = losses.mean_over_tokens(taken_T, context.mask_T)
        balance = null_balance(logits_TN.softmax(dim=-1), ids_TC, num_experts, context.mask_T)
        return routing._replace(
            losses={"balance": balance},
            metrics={**routing.metrics, "experts_per_token": per_token},
        )
