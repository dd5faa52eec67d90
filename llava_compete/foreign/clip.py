"""CLIP towers of transformers as towers of open_clip: their shape, and their weights' names.

The feature is a block's output before any norm, as in LLaVA: ``post_layernorm``, the projection
and the blocks behind it reach nothing.
"""

from typing import Any

from transformers import CLIPVisionConfig

from llava_compete.foreign.blocks import (
    BlockNames,
    export_block_rules,
    import_block_rules,
    read_activation,
)
from llava_compete.foreign.keys import AnyRule, Drop, Rule
from llava_compete.moe.dense import read_ffn
from llava_compete.vision import VisionConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)

# transformers' name of the activation: open_clip's quick_gelu and arguments of its nn.GELU
ACTIVATIONS: dict[str, tuple[bool, dict[str, Any]]] = {
    "quick_gelu": (True, {}),
    "gelu": (False, {}),
    "gelu_pytorch_tanh": (False, {"act_kwargs": {"approximate": "tanh"}}),
}

BLOCKS = BlockNames(
    blocks="vision.trunk.transformer.resblocks",
    norm="ln_",
    qkv="attn.in_proj_",
    out="attn.out_proj.",
    up="mlp.c_fc.",
    down="mlp.c_proj.",
)


def clip_vision(
    name: str,
    config: CLIPVisionConfig,
    layer: int,
    *,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> VisionConfig:
    """Our description of a CLIP tower; ``layer`` as in VisionConfig, negative ones from the end."""
    quick_gelu, more = read_activation(name, config, ACTIVATIONS)
    if config.num_channels != 3:
        raise ValueError(f"image tower {name}: num_channels={config.num_channels} must be 3")
    if config.layer_norm_eps != 1e-5:
        more = {**more, "norm_kwargs": {"eps": config.layer_norm_eps}}
    tower = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "head_width": config.hidden_size // config.num_attention_heads,
        # open_clip rounds the product down.
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        **more,
    }
    return VisionConfig(
        name=name,
        layer=layer,
        tower=tower,
        embed_dim=config.projection_dim,
        quick_gelu=quick_gelu,
        image_size=config.image_size,
        mean=mean,
        std=std,
        width=config.hidden_size,
        num_patches=(config.image_size // config.patch_size) ** 2,
    )


def clip_rules(prefix: str, config: CLIPVisionConfig, layer: int) -> list[AnyRule]:
    """Weights of a transformers CLIP tower below ``prefix``, a pattern, to ours."""
    depth = config.num_hidden_layers
    return [
        Drop(r".*\.position_ids", "a constant"),
        Drop(rf"{prefix}post_layernorm\..*", "the final norm: the feature is a block's output"),
        Rule(rf"{prefix}embeddings\.class_embedding", "vision.trunk.class_embedding"),
        Rule(rf"{prefix}embeddings\.patch_embedding\.weight", "vision.trunk.conv1.weight"),
        Rule(
            rf"{prefix}embeddings\.position_embedding\.weight", "vision.trunk.positional_embedding"
        ),
        Rule(rf"{prefix}pre_layrnorm\.(weight|bias)", r"vision.trunk.ln_pre.\1"),
        *import_block_rules(prefix, BLOCKS, depth, range(depth)[layer]),
    ]


def export_clip_config(trunk: Any, vision: VisionConfig) -> CLIPVisionConfig:
    """transformers' description of an open_clip trunk, which ends with the block that is used."""
    block = trunk.transformer.resblocks[0]
    ffn = read_ffn(block.mlp, "vision")
    return CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=ffn.down.in_features,
        num_hidden_layers=len(trunk.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=vision.image_size,
        patch_size=trunk.conv1.kernel_size[0],
        hidden_act=ffn.activation,
        layer_norm_eps=block.ln_1.eps,
        projection_dim=vision.embed_dim,
    )


def export_clip_rules(prefix: str) -> list[AnyRule]:
    """Our names of an open_clip tower to transformers', each below ``prefix``."""
    return [
        Rule(r"vision\.trunk\.class_embedding", f"{prefix}embeddings.class_embedding"),
        Rule(r"vision\.trunk\.conv1\.weight", f"{prefix}embeddings.patch_embedding.weight"),
        Rule(
            r"vision\.trunk\.positional_embedding", f"{prefix}embeddings.position_embedding.weight"
        ),
        Rule(r"vision\.trunk\.ln_pre\.(weight|bias)", rf"{prefix}pre_layrnorm.\1"),
        *export_block_rules(prefix, BLOCKS),
    ]
