"""LLaVA's own layout (``llava_llama`` and its like) as a model of ours.

The language model's keys are its own, beside them ``model.mm_projector`` and, where it was trained
along, ``model.vision_tower``; else config.json names the tower (``mm_vision_tower``). A folder
with ``mm_projector.bin`` and no language model is what LLaVA's first stage leaves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from llava_compete.foreign import towers
from llava_compete.foreign.imported import Imported, import_state
from llava_compete.foreign.keys import AnyRule, Drop, Rule
from llava_compete.model import LlavaCompeteConfig
from llava_compete.weight_files import read_folder, read_weights

# model_type of LLaVA's configurations: that of the language model below it
LANGUAGE_MODELS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
    "llava_phi3": "phi3",
}
TOWER = "model.vision_tower.vision_tower."
PROJECTOR_FILE = "mm_projector.bin"

# What config.json may say of a key that would change the computation, absence included.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": (None, "linear", "mlp2x_gelu"),
    "mm_vision_select_feature": (None, "patch"),
    "mm_use_im_start_end": (None, False),
    "mm_patch_merge_type": (None, "flat"),
    "image_aspect_ratio": (None, "square", "pad"),
    "s2": (None, False),
}


def is_original_llava(values: Mapping[str, Any]) -> bool:
    """Is this a config.json of that layout?"""
    return "mm_vision_tower" in values


def import_original_llava(
    folder: Path, *, language_model: Path | None = None, vision_weights: str | None = None
) -> Imported:
    """The checkpoint of ``folder``.

    ``language_model``, a folder of transformers, is given for a ``mm_projector.bin`` alone.
    ``vision_weights`` (towers.read_weights) is given where the tower is not in the files, or, a
    folder, for its config.json. ValueError where either is needed and not given or the other way
    round, and where config.json asks for something that no model of ours computes.
    """
    values = json.loads((folder / "config.json").read_text())
    for name, supported in SUPPORTED.items():
        if values.get(name) not in supported:
            raise ValueError(f"{folder}: {name}={values[name]!r} is not one of {supported[1:]}")
    state = _read_state(folder, language_model)
    text = _text_config(values) if language_model is None else _read_text_config(language_model)
    name = str(values["mm_vision_tower"])
    tower = towers.read_config(name, vision_weights)
    layer = towers.block_of(values.get("mm_vision_select_layer", -2), tower.num_hidden_layers)
    statistics = towers.read_pixel_statistics(folder, tower.image_size)
    vision = towers.describe(name, tower, layer, statistics)
    rules = original_llava_rules(tower, layer)
    if any(key.startswith(TOWER) for key in state):
        if vision_weights is not None and not Path(vision_weights).is_dir():
            raise ValueError(
                f"{folder} holds the image tower's weights: leave --vision_weights out"
            )
    elif vision_weights is None:
        raise ValueError(
            f"{folder} holds no image tower: give --vision_weights, a folder, a file or a "
            f"published tag (openai) with the weights of {name}"
        )
    else:
        found, more = towers.read_weights(name, vision, vision_weights)
        state |= found
        rules = [*more, *rules]
    config = LlavaCompeteConfig(
        text_config=text,
        vision_config=vision.to_dict(),
        projector=values.get("mm_projector_type") or "linear",
    )
    return import_state(config, state, rules, source=str(folder))


def original_llava_rules(tower: towers.TowerConfig, layer: int) -> list[AnyRule]:
    """The keys of this layout to ours; a tower from elsewhere has no prefix, or ours already."""
    prefix = r"(?:model\.vision_tower\.vision_tower\.)?(?:vision_model\.)?"
    projector = {"": "linear", r"0\.": "linear_1", r"2\.": "linear_2"}
    return [
        Drop(r".*\.rotary_emb\.inv_freq", "computed from the configuration"),
        *towers.tower_rules(prefix, tower, layer),
        Rule(r"vision\.trunk\..+", r"\g<0>"),
        *(
            Rule(rf"model\.mm_projector\.{theirs}(weight|bias)", rf"projector.{ours}.\1")
            for theirs, ours in projector.items()
        ),
        Rule(r"lm_head\.weight", "language_model.lm_head.weight"),
        Rule(r"model\.(?!mm_projector|vision_tower)(.+)", r"language_model.model.\1"),
    ]


def _read_state(folder: Path, language_model: Path | None) -> dict[str, Tensor]:
    """Language model and projector, and the tower where the files hold it."""
    if language_model is None:
        if (folder / PROJECTOR_FILE).is_file():
            raise ValueError(
                f"{folder} holds {PROJECTOR_FILE}, a projector alone: give --language_model, the "
                f"folder of the language model that it was trained for"
            )
        return read_folder(folder)
    if not (folder / PROJECTOR_FILE).is_file():
        raise ValueError(
            f"{folder} has no {PROJECTOR_FILE}: --language_model is for a projector alone"
        )
    return {**read_folder(language_model), **read_weights(folder / PROJECTOR_FILE)}


def _text_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Of a whole checkpoint's config.json, whose other keys are LLaVA's."""
    if values["model_type"] not in LANGUAGE_MODELS:
        raise ValueError(
            f"model_type={values['model_type']!r} is not one of {sorted(LANGUAGE_MODELS)}"
        )
    kind = LANGUAGE_MODELS[values["model_type"]]
    known = {*AutoConfig.for_model(kind).to_dict(), "rope_theta", "rope_scaling"}
    known -= {"model_type", "architectures", "transformers_version", "_name_or_path", "dtype"}
    return AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k in known})


def _read_text_config(folder: Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)
