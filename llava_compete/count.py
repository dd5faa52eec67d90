"""Parameters and FLOPs of a model, counted on the meta device: no weight is read or made."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Phi3Config

from llava_compete.checkpoint import read_config
from llava_compete.model import LlavaCompeteConfig, LlavaCompeteForConditionalGeneration
from llava_compete.moe import MoEConfig, MoELayer
from llava_compete.named import NAMED, Named
from llava_compete.names import nearest
from llava_compete.vision import ImageTower, describe_tower

LEGEND = """\
total: parameters held. text token, image token: those that one token meets, K of the E experts; of
an embedding table the row it reads. An image token meets tower, projector and decoder layers.
FLOPs of a forward: 2 per weight of a linear map (experts, gates, head) or convolution that is
applied; without the products of activations with activations (attention scores), norms and
activation functions. A picture: the crops of all scales through the tower, then its image tokens
through projector and decoder layers."""

# The products of weights with activations among the operations FlopCounterMode knows.
WEIGHTED = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


@dataclass(frozen=True)
class Count:
    """What LEGEND says, of one part or of several."""

    total: int
    text_token: int
    image_token: int
    flops_text_token: int
    flops_picture: int

    def __add__(self, other: "Count") -> "Count":
        names = [item.name for item in fields(self)]
        return Count(**{name: getattr(self, name) + getattr(other, name) for name in names})


def count(config: LlavaCompeteConfig) -> dict[str, Count]:
    """The counts of vision, projector and language_model, and their sum under ``all``.

    A token meets K experts whatever the router: where a router gives tokens different numbers of
    experts, K is the mean or the most.
    """
    with torch.device("meta"):
        model = LlavaCompeteForConditionalGeneration(config)
    language, patches = model.language_model, config.vision.num_patches
    decoder = language.get_decoder()
    parts = {
        "vision": Count(
            total=_held(model.vision),
            text_token=0,
            image_token=_met(model.vision),
            flops_text_token=0,
            flops_picture=_tower_flops(model.vision),
        ),
        "projector": Count(
            total=_held(model.projector),
            text_token=0,
            image_token=_met(model.projector),
            flops_text_token=0,
            flops_picture=patches * _token_flops(model.projector),
        ),
        "language_model": Count(
            total=_held(language),
            text_token=_met(language),
            image_token=_met(decoder) - _met(language.get_input_embeddings()),
            flops_text_token=_token_flops(language),
            flops_picture=patches * _token_flops(decoder),
        ),
    }
    return {**parts, "all": sum(parts.values(), start=Count(0, 0, 0, 0, 0))}


def _held(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _met(module: nn.Module) -> int:
    """Parameters that a token meets on its way through the module."""
    if isinstance(module, MoELayer):
        share = module.router.spec.top_k / module.experts.num_experts
        return round(share * _held(module.experts)) + _met(module.router)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return own + sum(map(_met, module.children()))


def _token_flops(module: nn.Module) -> int:
    """FLOPs of a token in the linear maps of a module without convolutions."""
    if isinstance(module, MoELayer):
        stacked = module.experts.weights().values()
        share = module.router.spec.top_k / module.experts.num_experts
        return round(share * sum(2 * w.numel() for w in stacked)) + _token_flops(module.router)
    own = 2 * module.weight.numel() if isinstance(module, nn.Linear) else 0
    return own + sum(map(_token_flops, module.children()))


def _tower_flops(tower: ImageTower) -> int:
    """FLOPs of a picture in the tower: counted as it runs with dense FFNs, then these replaced."""
    with torch.device("meta"):
        dense = ImageTower(tower.config).eval()
        pixels = torch.zeros(1, 3, tower.config.image_size, tower.config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dense(pixels)
    by_module = {
        name: sum(flops.get(operation, 0) for operation in WEIGHTED)
        for name, flops in counter.get_flop_counts().items()
    }
    flops = by_module["Global"]
    for name, module in tower.named_modules():
        if isinstance(module, MoELayer):
            ffn = by_module[f"{type(dense).__name__}.{name}"]
            flops += tower.tokens_per_image() * _token_flops(module) - ffn
    return flops


def _build(named: Named) -> LlavaCompeteConfig:
    phi = Phi3Config(  # values of microsoft/Phi-3.5-mini-instruct/config.json
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        tie_word_embeddings=False,
    )
    vision = describe_tower("ViT-SO400M-14-SigLIP", named.layer, scales=(1, 3))
    return LlavaCompeteConfig(
        text_config=phi,
        vision_config=vision.to_dict(),
        projector="mlp2x_gelu",
        moe={part: MoEConfig().to_dict() for part in named.parts},
    )


def read_model(name: str) -> LlavaCompeteConfig:
    """The configuration of a checkpoint directory, or of a model in NAMED."""
    if Path(name).is_dir():
        return read_config(Path(name))
    if name not in NAMED:
        raise ValueError(
            f"{name!r} is neither a checkpoint directory nor one of {', '.join(NAMED)}"
            f"{nearest(name, NAMED)}"
        )
    return _build(NAMED[name])


def as_json(name: str, config: LlavaCompeteConfig) -> dict[str, Any]:
    """The counts as plain values, with the shape of what was counted."""
    counts = {part: asdict(values) for part, values in count(config).items()}
    return {"model": name, "counts": counts, "moe": config.moe or {}}


def as_table(name: str, config: LlavaCompeteConfig) -> str:
    """The counts as a Markdown table, below a line that says what was counted."""
    counts = count(config)
    vision, moe = config.vision, config.moe_configs
    scales = " and ".join(map(str, vision.scales))
    shape = [f"{vision.name} at scale {scales}, {vision.num_patches} tokens a picture"]
    shape += [f"{part}: {c.num_experts} experts, top {c.top_k}" for part, c in moe.items()]
    rows = [["part", "total", "text token", "image token", "GFLOPs text token", "GFLOPs picture"]]
    for part, values in counts.items():
        flops = (values.flops_text_token, values.flops_picture)
        met = (values.total, values.text_token, values.image_token)
        rows.append([part, *(f"{n:,}" for n in met), *(f"{f / 1e9:,.2f}" for f in flops)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [
        f"| {row[0]:{widths[0]}} | "
        + " | ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in rows
    ]
    total = counts["all"].total / 1e9
    return "\n".join([f"{name}: {total:.2f}B parameters; {'; '.join(shape)}", "", *lines])
