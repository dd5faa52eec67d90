"""A shared expert beside the routed ones (DeepSeek-V2, arXiv:2405.04434).

T tokens, E experts, K of them for each token, R = E-1 routed experts, J = K-1 chosen among them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_compete.moe.routers.base import Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter, token_choice


def with_shared(routed: Routing) -> Routing:
    """The routing over R experts as one over E: expert 0 takes half of every token.

    The routed experts become 1 to R at half their weights. They keep the first columns, so that
    ``ids_TK[:, 0]`` is still the router's first choice; the shared expert, which has no score of
    its own, is ranked above them by an infinite one.
    """
    shared_T1 = torch.zeros_like(routed.ids_TK[:, :1])
    return routed._replace(
        ids_TK=torch.cat([routed.ids_TK + 1, shared_T1], dim=1),
        weights_TK=F.pad(routed.weights_TK / 2, (0, 1), value=0.5),
        scores_TE=F.pad(routed.scores_TE, (1, 0), value=float("inf")),
    )


class SharedV2Router(TopKRouter):
    """Expert 0 takes every token with weight 1/2; of the others K-1 share the other half.

    The gate has E-1 rows: softmax over the routed experts, the K-1 largest, over their sum, times
    1/2. So K stays the number of experts a token has, and an upcycled layer equals the dense one.
    Balance and z-loss are those of ``topk``, over the routed experts alone.

    DeepSeek-V2 adds the shared experts at weight 1 and neither renormalises the others nor halves
    them; the halves are those of CompeteSMoE's experiments. Its limit on devices per token and
    its balance losses by device and by communication are about expert parallelism, which is not
    here; its expert-level balance loss is 0.003 per sequence, here Switch's over the batch.
    """

    @classmethod
    def check(cls, num_experts: int, top_k: int, options: Any) -> None:
        """ValueError where no expert is left to be routed to."""
        if top_k < 2:
            raise ValueError(
                f"top_k={top_k} must be at least 2: one of a token's experts is the shared one; "
                f"without it this is router topk"
            )

    def gate_rows(self) -> int:
        """Things the gate scores: the routed experts."""
        return self.spec.num_experts - 1

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        """The shared expert and the K-1 most probable of the routed ones (here E is R)."""
        chosen_TJ, ids_TJ = probs_TE.topk(self.spec.top_k - 1, dim=-1)
        weights_TJ = chosen_TJ / chosen_TJ.sum(dim=-1, keepdim=True)
        return with_shared(token_choice(x_TD, logits_TE, probs_TE, ids_TJ, weights_TJ, context))
