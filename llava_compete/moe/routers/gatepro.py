"""GatePro (arXiv:2510.13079): of two alike experts the weaker gives way, token by token.

T tokens, E experts, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_compete.moe.routers.base import RouterSpec
from llava_compete.moe.routers.topk import TopKRouter

PENALTY = 1e-4  # lambda; the usual value of the paper, by a summary of its full text


def partners(weight_ED: Tensor) -> Tensor:
    """The other expert whose gate row has the largest cosine with each expert's, int64 (E,).

    One expert alone is its own partner. Not always mutual: a's partner may have another.
    """
    with torch.no_grad(), torch.autocast(weight_ED.device.type, enabled=False):
        unit_ED = F.normalize(weight_ED.float(), dim=-1)
        cosine_EE = (unit_ED @ unit_ED.T).fill_diagonal_(float("-inf"))
        return cosine_EE.argmax(dim=-1)


class RivalGate(nn.Linear):
    """A linear gate, float32, in which an expert that scores below its partner loses lambda.

    A gate of its own, because under ZeRO-3 the weight is there only while its module runs.
    """

    def forward(self, x_TD: Tensor) -> Tensor:
        logits_TE = super().forward(x_TD).float()
        loses_TE = logits_TE < logits_TE[:, partners(self.weight)]
        return logits_TE - PENALTY * loses_TE


class GateProRouter(TopKRouter):
    """z_e minus 1e-4 where z_e is below that of e's partner, then plain top-K.

    The partner of e is the other expert with the most similar gate row. An expert that ties with
    its partner keeps its score. No parameter and no loss of its own: the gate is that of
    ``topk``, so a checkpoint of either goes on as the other. With so small a lambda only near-ties
    between an expert that loses to its partner and one that does not change hands; in bfloat16
    most logits lie further apart than that, or are equal.

    No official code was found. The paper leaves the losses as they are; here balance and z-loss
    see the lowered scores, which differ by lambda at most. The partner has no gradient.
    """

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        self.gate = RivalGate(spec.width, spec.num_experts, bias=False)
        self.reset_parameters()
