"""Perturbed cosine routing (arXiv:2405.14131): a cosine whose norms have a constant added."""

from torch import Tensor

from llava_compete.moe.routers.cosine import CosineRouter

THETA = 0.1  # CompeteSMoE's, for token and embedding alike


class PerturbedCosineRouter(CosineRouter):
    """z_e = 1.5 (W x . v_e) / ((|W x| + 0.1)(|v_e| + 0.1)) / 0.3; the rest as CosineRouter.

    The constant breaks the tie between a vector's length and the rest of the model, which makes
    the plain cosine's parameters slow to estimate: a longer token or embedding now scores a
    little higher in size.

    Departures: the paper allows a constant of its own for tokens and for embeddings, here both
    are 0.1. CompeteSMoE's code writes 1.5 / (norm + 0.1) into the embedding at each forward,
    which drives its norm to 1.4 whatever was learned; here the factor is applied to the learned
    vector, whose length counts. R, start and weights as in CosineRouter: no second softmax.
    """

    def unit(self, vectors: Tensor) -> Tensor:
        """The vectors (rows) divided by their norm plus theta: shorter than 1, never 0/0."""
        return vectors / (vectors.norm(dim=-1, keepdim=True) + THETA)
