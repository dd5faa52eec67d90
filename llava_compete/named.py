"""Models that have a name to be counted by, without a checkpoint; no torch in here."""

from typing import NamedTuple


class Named(NamedTuple):
    """Phi-3.5-mini-instruct with SigLIP so400m at 224 pixels, scales 1 and 3, and mlp2x_gelu."""

    what: str
    layer: int  # block of the tower whose output is used; those behind it are not built
    parts: tuple[str, ...] = ()  # with experts, as MoEConfig has them


NAMED = {
    "paper": Named(
        "The model of CompeteSMoE (arXiv:2505.13380), experts in 27 tower blocks and the "
        "projector.",
        # Of the blocks, all 27, the paper's model uses the output of the one before the last.
        -1,
        ("vision", "projector"),
    ),
    "paper_used": Named(
        "The same without the last tower block, which is not used: as compose builds it.",
        -2,
        ("vision", "projector"),
    ),
    "design_card": Named(
        "The same dense model, the FFNs of all decoder layers are experts.",
        -2,
        ("language_model",),
    ),
    "dense": Named("The model that they are made of, as compose builds it.", -2),
}
