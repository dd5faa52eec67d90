"""Dense feed-forward layers -> mixtures of experts (sparse upcycling, arXiv:2212.05055).

``install_moe`` makes the structure, ``upcycle`` also copies each dense layer into its experts.
A new FFN layout is one more entry in ``LAYOUTS``.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from llava_compete.moe.config import MoEConfig
from llava_compete.moe.experts import Experts
from llava_compete.moe.layer import MoELayer
from llava_compete.names import nearest

PARTS = ("language_model", "projector")


class FFNLayout(NamedTuple):
    """Which linear maps of a dense feed-forward layer are what."""

    up: tuple[str, ...]  # stacked on their outputs, the gate's rows before the up projection's
    down: str
    gated: bool


# A new family is usually here already; else add the names of its linear maps.
LAYOUTS = (
    # Llama, Mistral, Qwen2, Qwen3
    FFNLayout(up=("gate_proj", "up_proj"), down="down_proj", gated=True),
    # Phi-3
    FFNLayout(up=("gate_up_proj",), down="down_proj", gated=True),
    # the projector mlp2x_gelu
    FFNLayout(up=("linear_1",), down="linear_2", gated=False),
)


class DenseFFN(NamedTuple):
    """The linear maps of a dense feed-forward layer."""

    up: tuple[nn.Linear, ...]
    down: nn.Linear
    gated: bool


def read_ffn(ffn: nn.Module, where: str) -> DenseFFN:
    """The layer's linear maps; ValueError naming what was found where the layout is unknown."""
    linear = {name: child for name, child in ffn.named_children() if isinstance(child, nn.Linear)}
    for layout in LAYOUTS:
        if set(linear) == {*layout.up, layout.down}:
            up = tuple(linear[name] for name in layout.up)
            return DenseFFN(up, linear[layout.down], layout.gated)
    raise ValueError(
        f"{where}: a {type(ffn).__name__} with the linear maps {sorted(linear)} cannot be turned "
        f"into experts; known layouts: {[[*layout.up, layout.down] for layout in LAYOUTS]}. "
        f"Add it to LAYOUTS in llava_compete/moe/upcycle.py"
    )


class Slot(NamedTuple):
    """A place in the model where a dense FFN stands or stood."""

    owner: nn.Module
    attribute: str
    name: str
    activation: str


def slots(model: Any, part: str, config: MoEConfig) -> Iterator[Slot]:
    """The places that ``config`` turns into experts, in the order of the model."""
    if part not in PARTS:
        raise ValueError(f"parts: {part!r} cannot be a mixture of experts{nearest(part, PARTS)}")
    if part == "projector":
        if config.layers is not None:
            raise ValueError(f"layers={config.layers}: the projector is one layer; leave it out")
        yield Slot(model, "projector", "projector", "gelu")
        return
    language_model = model.language_model
    decoder_layers = language_model.model.layers
    chosen = range(len(decoder_layers)) if config.layers is None else config.layers
    for index in chosen:
        if index >= len(decoder_layers):
            raise ValueError(
                f"layers={config.layers}: the language model has layers 0 to "
                f"{len(decoder_layers) - 1}"
            )
        name = f"language_model.model.layers.{index}.mlp"
        activation = language_model.config.hidden_act
        yield Slot(decoder_layers[index], "mlp", name, activation)


def install_moe(model: nn.Module, configs: Mapping[str, MoEConfig]) -> None:
    """Put uninitialised MoE layers where the dense ones stand; the model's __init__ calls it."""
    count = itertools.count()  # over all parts: every layer has a gate of its own
    for part, config in configs.items():
        for slot in slots(model, part, config):
            index = next(count)
            dense = read_ffn(getattr(slot.owner, slot.attribute), slot.name)
            layer = _layer_for(dense, config, index, slot.activation)
            setattr(slot.owner, slot.attribute, layer)


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
    count = itertools.count()
    for part, config in configs.items():
        for slot in slots(model, part, config):
            index = next(count)
            current = getattr(slot.owner, slot.attribute)
            if isinstance(current, MoELayer):
                raise ValueError(f"{slot.name} is a mixture of experts already")
            dense = read_ffn(current, slot.name)
            layer = _layer_for(dense, config, index, slot.activation).to(dense.down.weight.dtype)
            _copy_dense(dense, layer.experts, perturbation, generator)
            setattr(slot.owner, slot.attribute, layer)


def _layer_for(dense: DenseFFN, config: MoEConfig, index: int, activation: str) -> MoELayer:
    # From the maps' attributes, not their weights: under ZeRO-3 those are empty shards here.
    rows = sum(linear.out_features for linear in dense.up)
    experts = Experts(
        config.num_experts,
        in_features=dense.up[0].in_features,
        hidden_features=rows // 2 if dense.gated else rows,
        out_features=dense.down.out_features,
        activation=activation,
        gated=dense.gated,
        bias=dense.down.bias is not None,
    )
    return MoELayer(experts, config, index=index)


def _copy_dense(
    dense: DenseFFN, experts: Experts, perturbation: float, generator: torch.Generator
) -> None:
    for stacked, source in (
        (experts.first_weight, torch.cat([linear.weight for linear in dense.up])),
        (experts.down_proj, dense.down.weight),
    ):
        stacked.copy_(source.expand_as(stacked))
        if perturbation:
            noise = torch.randn(stacked.shape, generator=generator)
            stacked.add_((noise * perturbation * source.float().std()).to(stacked.dtype))
    if experts.up_bias is not None and experts.down_bias is not None:
        experts.up_bias.copy_(torch.cat([linear.bias for linear in dense.up]))
        experts.down_bias.copy_(dense.down.bias)
