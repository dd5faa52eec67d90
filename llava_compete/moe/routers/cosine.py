"""Cosine routing (XMoE, arXiv:2204.09179): tokens and experts meet on a small hypersphere.

T tokens, E experts, K chosen per token, D width, R reduced width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_compete.moe.experts import Experts
from llava_compete.moe.routers.base import Router, RouterSpec, Routing, RoutingContext
from llava_compete.moe.routers.topk import TopKRouter, token_choice

REDUCED_WIDTH = 16  # torchscale's; the width itself where that is smaller
EMBEDDING_NORM = 1.5  # torchscale's and CompeteSMoE's
EMBEDDING_GAIN = 0.32  # of the orthogonal start, torchscale's
TEMPERATURE = 0.3  # CompeteSMoE's, fixed
EPSILON = 1e-4  # least norm a vector is divided by; both codes


class CosineRouter(Router):
    """z_e = 1.5 cos(W x, v_e) / 0.3, then plain top-K: softmax, the K largest, over their sum.

    W reduces D to R = 16 without bias, v_e is the embedding of expert e. Neither a token's length
    nor an embedding's changes a score, so |z| <= 5. Balance is on softmax(z), z-loss on z.

    The sources disagree. torchscale: R = 16, embeddings orthogonal with gain 0.32 and set back to
    norm 1.5 at each forward, but then divided by their norm again (1.5 acts on gradients only);
    the token is not normalised; routing knows no temperature (0.07 is named for the balance loss
    and not used). CompeteSMoE's code: R = E/2, token normalised, embeddings Normal(0, 0.02) and
    set back to 1.5, temperature 0.3, and a second softmax over the K chosen probabilities, which
    flattens the weights; its z-loss is on the cosines before the temperature.

    Here: torchscale's R and start, CompeteSMoE's cosine and temperature (0.3, not learned), one
    softmax. The embedding is normalised in a copy, never in place: under ZeRO-3 a change of the
    gathered parameter would be lost.
    """

    loss_weights = TopKRouter.loss_weights

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__(spec)
        reduced = min(REDUCED_WIDTH, spec.width)
        self.embeddings = nn.Parameter(torch.empty(spec.num_experts, reduced))
        self.reduction = nn.Linear(spec.width, reduced, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal embeddings, reduction as nn.Linear's; both from the layer's own seed."""
        if self.embeddings.is_meta:
            return
        generator = torch.Generator().manual_seed(self.spec.seed)
        width, reduced = self.spec.width, min(REDUCED_WIDTH, self.spec.width)
        embeddings_ER = torch.empty(self.spec.num_experts, reduced, device="cpu").float()
        nn.init.orthogonal_(embeddings_ER, gain=EMBEDDING_GAIN, generator=generator)
        reduction_RD = torch.empty(reduced, width, device="cpu").float()
        reduction_RD.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        with torch.no_grad():
            for weight, values in (
                (self.embeddings, embeddings_ER),
                (self.reduction.weight, reduction_RD),
            ):
                if weight.numel():  # 0: ZeRO-3 keeps it elsewhere, and gathers it to be set
                    weight.copy_(values)

    def forward(self, x_TD: Tensor, experts: Experts, context: RoutingContext) -> Routing:
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(dim=-1)
        chosen_TK, ids_TK = probs_TE.topk(self.spec.top_k, dim=-1)
        weights_TK = chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
        return token_choice(x_TD, logits_TE, probs_TE, ids_TK, weights_TK, context)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Scaled cosines, float32 (T, E) under autocast too."""
        reduced_TR = self.reduction(x_TD).float()
        with torch.autocast(x_TD.device.type, enabled=False):
            embeddings_ER = EMBEDDING_NORM * self.unit(self.embeddings.float())
            return self.unit(reduced_TR) @ embeddings_ER.T / TEMPERATURE

    def unit(self, vectors: Tensor) -> Tensor:
        """The vectors (rows) at length 1; a zero vector stays zero."""
        return F.normalize(vectors, dim=-1, eps=EPSILON)
