"""Projectors: vision features (..., V) -> language embeddings (..., D)."""

import torch
from torch import Tensor, nn

from llava_compete.names import nearest


class LinearProjector(nn.Module):
    """One linear map, as in LLaVA (arXiv:2304.08485)."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class MLPProjector(nn.Module):
    """Linear, GELU, linear: ``mlp2x_gelu`` of LLaVA-1.5 (arXiv:2310.03744)."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, language_width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


def build_projector(kind: str, vision_width: int, language_width: int) -> nn.Module:
    """The projector of that name; ValueError for an unknown one."""
    if kind not in PROJECTORS:
        raise ValueError(f"projector={kind!r} is not known{nearest(kind, PROJECTORS)}")
    return PROJECTORS[kind](vision_width, language_width)


@torch.no_grad()
def calibrate(projector: nn.Module, features_NV: Tensor, output_std: float) -> None:
    """Fold a standardisation into a fresh projector, so that its output begins in scale.

    The first layer is rewritten to see each of the V channels with mean 0 and standard deviation
    1 over the sample, the last one to give outputs of mean 0 and standard deviation
    ``output_std`` (that of the language model's embeddings). Nothing is added to the
    architecture.
    """
    layers = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    mean_V = features_NV.mean(dim=0)
    std_V = features_NV.std(dim=0).clamp(min=1e-3)
    first, last = layers[0], layers[-1]
    first.weight.div_(std_V)
    first.bias.sub_(first.weight @ mean_V)
    outputs_ND = projector(features_NV)
    scale = output_std / outputs_ND.std(dim=0).mean()
    last.bias.sub_(outputs_ND.mean(dim=0)).mul_(scale)
    last.weight.mul_(scale)


PROJECTORS: dict[str, type[nn.Module]] = {
    "linear": LinearProjector,
    "mlp2x_gelu": MLPProjector,
}
