"""LLaVA in transformers' layout (``LlavaForConditionalGeneration``) as a model of ours.

Both spellings of the keys are read: that of the files on the hub (``language_model.model.layers``)
and that of the module itself (``model.language_model.layers``).
"""

from pathlib import Path

from transformers import LlavaConfig

from llava_compete.foreign.imported import Imported, import_state
from llava_compete.foreign.keys import AnyRule, Drop, Rule
from llava_compete.foreign.towers import (
    TowerConfig,
    as_tower_config,
    block_of,
    describe,
    read_pixel_statistics,
    tower_rules,
)
from llava_compete.model import LlavaCompeteConfig
from llava_compete.weight_files import read_folder

# What a tower's class token asks for: CLIP has one and LLaVA drops it, SigLIP has none.
STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}


def import_hf_llava(folder: Path) -> Imported:
    """The checkpoint of ``folder``; ValueError where it computes what no model of ours computes."""
    config = LlavaConfig.from_pretrained(folder)
    tower = as_tower_config(config.vision_config)
    _check(config, tower)
    layer = block_of(config.vision_feature_layer, tower.num_hidden_layers)
    statistics = read_pixel_statistics(folder, tower.image_size)
    text = config.text_config
    text.tie_word_embeddings = config.tie_word_embeddings
    ours = LlavaCompeteConfig(
        text_config=text,
        vision_config=describe(tower.model_type, tower, layer, statistics).to_dict(),
        projector="mlp2x_gelu",
    )
    return import_state(ours, read_folder(folder), hf_llava_rules(tower, layer), source=str(folder))


def hf_llava_rules(tower: TowerConfig, layer: int) -> list[AnyRule]:
    """The keys of this layout to ours."""
    return [
        Drop(r".*\.rotary_emb\.inv_freq", "computed from the configuration"),
        *tower_rules(r"(?:model\.)?vision_tower\.(?:vision_model\.)?", tower, layer),
        Rule(r"(?:model\.)?multi_modal_projector\.(linear_[12]\.(?:weight|bias))", r"projector.\1"),
        Rule(r"(?:language_model\.)?lm_head\.weight", "language_model.lm_head.weight"),
        Rule(r"(?:model\.)?language_model\.(?:model\.)?(.+)", r"language_model.model.\1"),
    ]


def _check(config: LlavaConfig, tower: TowerConfig) -> None:
    wanted = {
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_select_strategy": STRATEGIES[tower.model_type],
    }
    for name, value in wanted.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(
                f"{name}={found!r} of a {tower.model_type} is not supported, only {value!r}"
            )
