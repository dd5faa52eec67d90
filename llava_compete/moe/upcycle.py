"""Dense feed-forward layers -> mixtures of experts (sparse upcycling, arXiv:2212.05055).

``install_moe`` makes the structure, ``upcycle`` also copies each dense layer into its experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from llava_compete.moe.config import MoEConfig
from llava_compete.moe.dense import DenseFFN, read_ffn
from llava_compete.moe.experts import Experts
from llava_compete.moe.layer import MoELayer
from llava_compete.moe.routers import ROUTERS
from llava_compete.names import nearest

PARTS = ("vision", "projector", "language_model")


class Slot(NamedTuple):
    """A place in the model where a dense FFN stands or stood."""

    owner: nn.Module
    attribute: str
    name: str


def slots(model: Any, part: str, config: MoEConfig) -> Iterator[Slot]:
    """The places that ``config`` turns into experts, in the order of the model."""
    if part not in PARTS:
        raise ValueError(f"parts: {part!r} cannot be a mixture of experts{nearest(part, PARTS)}")
    if part == "projector":
        if config.layers is not None:
            raise ValueError(f"layers={config.layers}: the projector is one layer; leave it out")
        yield Slot(model, "projector", "projector")
        return
    if part == "vision":
        blocks = {f"vision.{name}": block for name, block in model.vision.blocks().items()}
        whole = "image tower (blocks behind the one used are not built)"
    else:
        decoder_layers = model.language_model.model.layers.named_children()
        blocks = {f"language_model.model.layers.{name}": layer for name, layer in decoder_layers}
        whole = "language model"
    names = list(blocks)
    for index in range(len(names)) if config.layers is None else config.layers:
        if index >= len(names):
            raise ValueError(
                f"layers={config.layers}: the {whole} has layers 0 to {len(names) - 1}"
            )
        yield Slot(blocks[names[index]], "mlp", f"{names[index]}.mlp")


def install_moe(model: nn.Module, configs: Mapping[str, MoEConfig]) -> None:
    """Put uninitialised MoE layers where the dense ones stand; the model's __init__ calls it."""
    for slot, place in _places(model, configs):
        dense = read_ffn(getattr(slot.owner, slot.attribute), slot.name)
        place.fill(slot, _layer_for(dense, place))


@torch.no_grad()
def upcycle(
    model: nn.Module,
    configs: Mapping[str, MoEConfig],
    *,
    perturbation: float = 0.0,
    seed: int = 0,
) -> None:
    """Replace dense layers by E copies of themselves and a fresh gate.

    With ``perturbation`` 0 the output does not change, because the routing weights of a token sum
    to 1. Otherwise every expert weight gets Gaussian noise of ``perturbation`` times the standard
    deviation of the dense weight it was copied from, seeded: identical experts tie in a
    competition.
    """
    generator = torch.Generator().manual_seed(seed)
    for slot, place in _places(model, configs):
        current = getattr(slot.owner, slot.attribute)
        if isinstance(current, MoELayer):
            raise ValueError(f"{slot.name} is a mixture of experts already")
        dense = read_ffn(current, slot.name)
        layer = _layer_for(dense, place).to(dense.down.weight.dtype)
        _copy_dense(dense, layer.experts, perturbation, generator)
        place.fill(slot, layer)


@dataclass
class _Place:
    """What an MoE layer is told of its surroundings."""

    config: MoEConfig
    index: int  # over all parts: every layer has a gate of its own
    vocab_size: int | None
    previous: MoELayer | None = None

    def fill(self, slot: Slot, layer: MoELayer) -> None:
        setattr(slot.owner, slot.attribute, layer)
        self.previous = layer


def _places(model: Any, configs: Mapping[str, MoEConfig]) -> Iterator[tuple[Slot, _Place]]:
    """Each slot with its surroundings; the caller fills it before it asks for the next."""
    index = 0
    for part, config in sorted(configs.items()):  # config.json's order: a gate keeps its number
        found = list(slots(model, part, config))
        _check_router(part, config, len(found))
        in_text = part == "language_model"
        place = _Place(config, index, model.config.text_config.vocab_size if in_text else None)
        for slot in found:
            place.index = index
            yield slot, place
            index += 1


def _check_router(part: str, config: MoEConfig, num_layers: int) -> None:
    router = ROUTERS[config.router]
    if router.needs_token_ids and part != "language_model":
        raise ValueError(
            f"{part}: router {config.router} chooses by a token's id, and image features have "
            f"none; give {part} another router"
        )
    if router.needs_previous and num_layers < 2:
        raise ValueError(
            f"{part}: router {config.router} reads the choice of the MoE layer before, and here "
            f"is {num_layers} layer; give {part} another router or more layers"
        )


def _layer_for(dense: DenseFFN, place: _Place) -> MoELayer:
    # From the maps' attributes, not their weights: under ZeRO-3 those are empty shards here.
    rows = sum(linear.out_features for linear in dense.up)
    experts = Experts(
        place.config.num_experts,
        in_features=dense.up[0].in_features,
        hidden_features=rows // 2 if dense.gated else rows,
        out_features=dense.down.out_features,
        activation=dense.activation,
        gated=dense.gated,
        bias=dense.down.bias is not None,
    )
    return MoELayer(
        experts,
        place.config,
        index=place.index,
        previous=place.previous,
        vocab_size=place.vocab_size,
    )


def _copy_dense(
    dense: DenseFFN, experts: Experts, perturbation: float, generator: torch.Generator
) -> None:
    inner = torch.cat([linear.weight for linear in dense.up]).chunk(2 if dense.gated else 1)
    sources = [*(weight.T for weight in inner), dense.down.weight]
    for stacked, source in zip(experts.weights().values(), sources, strict=True):
        stacked.copy_(source.expand_as(stacked))
        if perturbation:
            noise = torch.randn(stacked.shape, generator=generator)
            stacked.add_((noise * perturbation * source.float().std()).to(stacked.dtype))
    if experts.down_bias is not None:
        biases = torch.cat([linear.bias for linear in dense.up]).chunk(len(inner))
        for name, bias in zip(experts.inner_names(), biases, strict=True):
            experts.get_parameter(f"{name}_bias").copy_(bias)
        experts.get_parameter("down_bias").copy_(dense.down.bias)
