"""A model of ours as a checkpoint of transformers' ``LlavaForConditionalGeneration``.

The image tower ends with the block whose output is the feature, so that ``vision_feature_layer``
is -1; the norm behind it, which reaches nothing, is written as ones and zeros. Of experts those of
the language model have a layout there:

- Mixtral, for Llama and Mistral with experts in every layer;
- Qwen3-MoE, for Qwen3 with experts in any layers.

Both route as the routers topk and compete do at inference: the K largest of a softmax, over their
sum. Qwen2-MoE adds a shared expert to every layer and PhiMoE chooses in another way, so that Qwen2
and Phi-3 with experts have no layout, nor have experts in projector and tower.
"""

from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from llava_compete.checkpoint import Model, new_directory
from llava_compete.foreign.clip import export_clip_config, export_clip_rules
from llava_compete.foreign.keys import AnyRule, Join, Rule, map_keys
from llava_compete.foreign.siglip import export_siglip_config, export_siglip_rules
from llava_compete.model import LANGUAGE
from llava_compete.moe.upcycle import slots

ROUTERS = ("topk", "compete")  # what they do at inference is what transformers' MoE families do
TOWER = "model.vision_tower."
NORM = f"{TOWER}post_layernorm."

# Of a language model's configuration, what is not carried over to its MoE family; at these values
# there is nothing to carry.
WITHOUT = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False}


def save_llava_hf(model: Model, processor: LlavaProcessor, path: Path) -> None:
    """Write the checkpoint directory, whole or not at all.

    ValueError where transformers' LLaVA has no place for a part of the model; the message says
    which.
    """
    config, rules = _llava_config(model)
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config)
    tied = theirs.get_expanded_tied_weights_keys(all_submodels=True)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if key not in tied}
    norm = {f"{NORM}{name}": shapes.pop(f"{NORM}{name}") for name in ("weight", "bias")}
    ours = {
        k: v for k, v in model.state_dict().items() if not (tied and k.endswith("lm_head.weight"))
    }
    tensors = map_keys(ours, rules, shapes, source="the model").tensors
    for name, shape in norm.items():
        tensors[name] = torch.full(shape, float(name.endswith("weight")), dtype=model.dtype)
    theirs.load_state_dict(tensors, strict=False, assign=True)
    theirs.tie_weights()
    theirs.generation_config = model.generation_config
    with new_directory(path) as partial:
        theirs.save_pretrained(partial)
        processor.save_pretrained(partial)


def _llava_config(model: Model) -> tuple[LlavaConfig, list[AnyRule]]:
    """transformers' configuration, and the rules from our names to its."""
    vision = model.config.vision
    if model.config.lora is not None:
        raise ValueError("the model has adapters: make them a part of it by `llava-compete merge`")
    if model.config.projector != "mlp2x_gelu":
        raise ValueError(f"projector={model.config.projector}: transformers' LLaVA has mlp2x_gelu")
    if vision.scales != (1,) or vision.layer == "final":
        raise ValueError(
            f"image tower at scales {list(vision.scales)}, layer {vision.layer}: transformers' "
            f"LLaVA looks at a picture once, at a block's output"
        )
    if others := sorted(set(model.config.moe_configs) - {LANGUAGE}):
        raise ValueError(f"experts in {others}: transformers' LLaVA has a place for {LANGUAGE}'s")
    tower, tower_rules = _tower(model.vision.trunk, model)
    text = _text_config(model)
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=model.config.image_token_id,
        image_seq_length=vision.num_patches,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if tower.model_type.startswith("clip") else "full",
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=model.dtype,
    )
    layer = r"language_model\.model\.layers\.(\d+)\.mlp\."
    return config, [
        *tower_rules,
        Rule(r"projector\.(.+)", r"model.multi_modal_projector.\1"),
        Rule(r"language_model\.lm_head\.weight", "lm_head.weight"),
        Join(
            rf"{layer}experts\.(?P<part>gate|up)_proj",
            r"model.language_model.layers.\1.mlp.experts.gate_up_proj",
            order=("gate", "up"),
            join=lambda parts: torch.cat([part.mT for part in parts], dim=1),
        ),
        Rule(rf"{layer}router\.gate\.weight", r"model.language_model.layers.\1.mlp.gate.weight"),
        Rule(r"language_model\.model\.(.+)", r"model.language_model.\1"),
    ]


def _tower(trunk: nn.Module, model: Model) -> tuple[PreTrainedConfig, list[AnyRule]]:
    vision = model.config.vision
    if isinstance(trunk, open_clip.transformer.VisionTransformer):
        return export_clip_config(trunk, vision), export_clip_rules(TOWER)
    if isinstance(trunk, timm.models.vision_transformer.VisionTransformer):
        return export_siglip_config(trunk, vision), export_siglip_rules(TOWER)
    raise ValueError(
        f"image tower {vision.name}: a {type(trunk).__name__} is neither CLIP's nor SigLIP's"
    )


def _text_config(model: Model) -> PreTrainedConfig:
    """The language model's configuration, or its MoE family's where it has experts."""
    text = model.config.text_config
    moe = model.config.moe_configs.get(LANGUAGE)
    if moe is None:
        return text
    if moe.router not in ROUTERS:
        raise ValueError(f"router={moe.router}: transformers' MoE families route as {ROUTERS} do")
    if text.model_type not in FAMILIES:
        raise ValueError(
            f"a {text.model_type} with experts has no form in transformers; {sorted(FAMILIES)} have"
        )
    values = text.to_dict()
    for name, value in WITHOUT.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{name}={values[name]} is not carried over to {text.model_type}'s MoE"
            )
    with_experts = {int(slot.name.split(".")[-2]) for slot in slots(model, LANGUAGE, moe)}
    dense = sorted(set(range(text.num_hidden_layers)) - with_experts)
    family, own = FAMILIES[text.model_type]
    known = AutoConfig.for_model(family).to_dict()
    taken = {
        k: v for k, v in values.items() if k in known and k not in ("model_type", "architectures")
    }
    return AutoConfig.for_model(family, **taken, **own(text, moe, dense))


def _mixtral(text: Any, moe: Any, dense: list[int]) -> dict[str, Any]:
    if dense:
        raise ValueError(f"layers {dense} are dense: Mixtral has experts in every layer")
    return {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.top_k}


def _qwen3_moe(text: Any, moe: Any, dense: list[int]) -> dict[str, Any]:
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": text.intermediate_size,
        "mlp_only_layers": dense,
        "head_dim": text.head_dim,  # no field of Qwen3MoeConfig, yet read
        "norm_topk_prob": True,
    }


FAMILIES = {
    "llama": ("mixtral", _mixtral),
    "mistral": ("mixtral", _mixtral),
    "qwen3": ("qwen3_moe", _qwen3_moe),
}
