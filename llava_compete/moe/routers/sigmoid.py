"""Sigmoid gating (sigma-MoE, arXiv:2310.10837; MoEUT, arXiv:2405.16039): experts scored apart.

T tokens, E experts, K chosen per token, D width.
"""

from torch import Tensor
from torch.nn import functional as F

from llava_compete.moe.routers.base import Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter, token_choice


class SigmoidRouter(TopKRouter):
    """The K largest sigmoid(z) of a linear gate; weights are these over their sum.

    A score says nothing about the other experts, so raising one lowers none. The balance loss is
    on softmax(z), not on the sigmoids, as in the papers and in CompeteSMoE's code; the z-loss is
    on z.

    Departures: both papers mix by the scores as they are, here they are divided by their sum, as
    in CompeteSMoE's code: an upcycled layer needs weights that sum to 1. Balance is Switch's loss,
    where the papers use the negative entropy of the mean softmax. No expert dropout.
    """

    def route(
        self, x_TD: Tensor, logits_TE: Tensor, probs_TE: Tensor, context: RoutingContext
    ) -> Routing:
        # By z, which the sigmoid keeps in order: in float32 all sigmoids above z = 17 are 1.
        chosen_TK, ids_TK = logits_TE.topk(self.spec.top_k, dim=-1)
        # sigmoid over the sum of sigmoids, also where all of them are 0 in float32.
        weights_TK = F.logsigmoid(chosen_TK).softmax(dim=-1)
        return token_choice(x_TD, logits_TE, probs_TE, ids_TK, weights_TK, context)
