"""SigLIP towers of transformers as towers of timm: their shape, and the names of their weights.

timm's SigLIP models compute the exact GELU, transformers' ``gelu_pytorch_tanh`` its approximation
by tanh, with which SigLIP was trained. The tower made here has the one that the source names.
"""

from typing import Any, Literal

from transformers import SiglipVisionConfig

from llava_compete.foreign.blocks import (
    BlockNames,
    export_block_rules,
    import_block_rules,
    read_activation,
)
from llava_compete.foreign.keys import AnyRule, Drop, Rule
from llava_compete.moe.dense import read_ffn
from llava_compete.vision import VisionConfig

# Any SigLIP model of timm; every number of its shape is overridden.
TIMM_NAME = "vit_base_patch16_siglip_224"
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}  # transformers' name: timm's
MEAN = STD = (0.5, 0.5, 0.5)  # of pixels in 0..1

BLOCKS = BlockNames(
    blocks="vision.trunk.blocks",
    norm="norm",
    qkv="attn.qkv.",
    out="attn.proj.",
    up="mlp.fc1.",
    down="mlp.fc2.",
)


def siglip_vision(
    name: str,
    config: SiglipVisionConfig,
    layer: int | Literal["final"],
    *,
    scales: tuple[int, ...] = (1,),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> VisionConfig:
    """Our description of a SigLIP tower; ``layer`` as in VisionConfig, negative ones from the end.

    ValueError for an activation or a norm that timm's tower does not have.
    """
    activation = read_activation(name, config, ACTIVATIONS)
    if config.layer_norm_eps != 1e-6:
        raise ValueError(
            f"image tower {name}: layer_norm_eps={config.layer_norm_eps} must be 1e-06, timm's"
        )
    size, patch = config.image_size, config.patch_size
    kwargs: dict[str, Any] = {
        "img_size": size,
        "patch_size": patch,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm rounds the product down.
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "act_layer": activation,
        "num_classes": 0,
        "global_pool": "",
    }
    return VisionConfig(
        name=name,
        layer=layer,
        tower={"timm_model_name": TIMM_NAME, "image_size": size, "timm_kwargs": kwargs},
        embed_dim=0,
        quick_gelu=False,
        image_size=size,
        mean=mean,
        std=std,
        width=config.hidden_size * len(scales),
        num_patches=(size // patch) ** 2,
        scales=scales,
    )


def siglip_rules(
    prefix: str, config: SiglipVisionConfig, layer: int | Literal["final"]
) -> list[AnyRule]:
    """Weights of a transformers SigLIP tower below ``prefix``, a pattern, to ours.

    Blocks behind ``layer`` and the pooling head reach no feature and are dropped, as is the norm
    where the feature is a block's.
    """
    depth = config.num_hidden_layers
    norm = rf"{prefix}post_layernorm\.(weight|bias)"
    of_a_block = Drop(norm, "the final norm: the feature is a block's output")
    return [
        Drop(rf"{prefix}head\..*", "the pooling head: patches are the feature"),
        Drop(r".*\.position_ids", "a constant"),
        Rule(norm, r"vision.trunk.norm.\1") if layer == "final" else of_a_block,
        Rule(
            rf"{prefix}embeddings\.patch_embedding\.(weight|bias)",
            r"vision.trunk.patch_embed.proj.\1",
        ),
        Rule(
            rf"{prefix}embeddings\.position_embedding\.weight",
            "vision.trunk.pos_embed",
            lambda weight_PV: weight_PV[None],
        ),
        *import_block_rules(prefix, BLOCKS, depth, range(depth)[-1 if layer == "final" else layer]),
    ]


def export_siglip_config(trunk: Any, vision: VisionConfig) -> SiglipVisionConfig:
    """transformers' description of a timm trunk, which ends with the block that is used."""
    block = trunk.blocks[0]
    ffn = read_ffn(block.mlp, "vision")
    return SiglipVisionConfig(
        hidden_size=vision.width,
        intermediate_size=ffn.down.in_features,
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=vision.image_size,
        patch_size=trunk.patch_embed.patch_size[0],
        hidden_act=ffn.activation,
        layer_norm_eps=block.norm1.eps,
        vision_use_head=False,
    )


def export_siglip_rules(prefix: str) -> list[AnyRule]:
    """Our names of a timm tower to transformers', each below ``prefix``."""
    return [
        Rule(
            r"vision\.trunk\.patch_embed\.proj\.(weight|bias)",
            rf"{prefix}embeddings.patch_embedding.\1",
        ),
        Rule(
            r"vision\.trunk\.pos_embed",
            f"{prefix}embeddings.position_embedding.weight",
            lambda positions_1PV: positions_1PV[0],
        ),
        *export_block_rules(prefix, BLOCKS),
    ]
