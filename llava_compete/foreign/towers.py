"""Image towers in transformers' form: which they are, how they are described here, their names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from transformers import AutoConfig, CLIPVisionConfig, SiglipVisionConfig
from transformers.image_utils import PILImageResampling

from llava_compete.foreign import clip, siglip
from llava_compete.foreign.keys import AnyRule, Drop
from llava_compete.vision import VisionConfig, load_tower
from llava_compete.weight_files import read_folder

TowerConfig: TypeAlias = CLIPVisionConfig | SiglipVisionConfig

NOT_THE_IMAGE_SIDE = r"(?:text_model|text_projection|visual_projection|logit_scale|logit_bias)\b.*"


class PublishedTower(NamedTuple):
    """A tower that checkpoints name without its shape."""

    open_clip: str  # its name there
    config: TowerConfig


def _clip(width: int, depth: int, heads: int, patch: int, size: int = 224) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=size,
    )


def _so400m(size: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        image_size=size,
    )


PUBLISHED = {
    "openai/clip-vit-large-patch14-336": PublishedTower(
        "ViT-L-14-336", _clip(1024, 24, 16, 14, 336)
    ),
    "openai/clip-vit-large-patch14": PublishedTower("ViT-L-14", _clip(1024, 24, 16, 14)),
    "openai/clip-vit-base-patch16": PublishedTower("ViT-B-16", _clip(768, 12, 12, 16)),
    "openai/clip-vit-base-patch32": PublishedTower("ViT-B-32", _clip(768, 12, 12, 32)),
    "google/siglip-base-patch16-224": PublishedTower("ViT-B-16-SigLIP", SiglipVisionConfig()),
    "google/siglip-so400m-patch14-224": PublishedTower("ViT-SO400M-14-SigLIP", _so400m(224)),
    "google/siglip-so400m-patch14-384": PublishedTower("ViT-SO400M-14-SigLIP-384", _so400m(384)),
}


def block_of(feature_layer: Any, depth: int) -> int:
    """The block whose output is ``hidden_states[feature_layer]`` of a tower of ``depth`` blocks.

    Negative as given, so that -2 stays -2. ``hidden_states`` begin with the embeddings.
    """
    if not isinstance(feature_layer, int):
        raise ValueError(f"vision_feature_layer={feature_layer}: features of one layer are read")
    if not (1 <= feature_layer <= depth or -depth <= feature_layer <= -1):
        raise ValueError(
            f"vision_feature_layer={feature_layer} must name the output of one of {depth} blocks"
        )
    return feature_layer if feature_layer < 0 else feature_layer - 1


def describe(
    name: str, config: TowerConfig, layer: int, statistics: "PixelStatistics | None" = None
) -> VisionConfig:
    """Our description of the tower; pixels are normalised as published unless told otherwise."""
    given = {} if statistics is None else statistics._asdict()
    if isinstance(config, CLIPVisionConfig):
        return clip.clip_vision(name, config, layer, **given)
    return siglip.siglip_vision(name, config, layer, **given)


def tower_rules(prefix: str, config: TowerConfig, layer: int) -> list[AnyRule]:
    """Weights below ``prefix``, a pattern, to ours."""
    if isinstance(config, CLIPVisionConfig):
        return clip.clip_rules(prefix, config, layer)
    return siglip.siglip_rules(prefix, config, layer)


def as_tower_config(config: Any) -> TowerConfig:
    """``config``, or the image side of a whole CLIP or SigLIP; ValueError for another tower."""
    config = getattr(config, "vision_config", config)
    if not isinstance(config, CLIPVisionConfig | SiglipVisionConfig):
        raise ValueError(
            f"image tower of type {type(config).__name__}: CLIP's and SigLIP's of transformers are "
            f"read"
        )
    return config


def read_config(name: str, weights: str | None) -> TowerConfig:
    """The shape of the tower called ``name``: of the folder that has it, or of PUBLISHED."""
    for folder in (weights, name):
        if folder is not None and (Path(folder) / "config.json").is_file():
            return as_tower_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if name not in PUBLISHED:
        raise ValueError(
            f"image tower {name!r} is neither a folder nor one of {sorted(PUBLISHED)}: give "
            f"--vision_weights a folder with the tower's config.json"
        )
    return PUBLISHED[name].config


def read_weights(
    name: str, vision: VisionConfig, weights: str
) -> tuple[dict[str, Tensor], list[AnyRule]]:
    """A tower's weights by whatever names they have, and rules for those that are no tower's.

    ``weights`` is a folder of transformers, a file of open_clip or a published tag of open_clip.
    """
    if Path(weights).is_dir():
        return read_folder(Path(weights)), [
            Drop(NOT_THE_IMAGE_SIDE, "the text side of CLIP and SigLIP")
        ]
    if name in PUBLISHED:
        vision_name = PUBLISHED[name].open_clip
        tower = load_tower(VisionConfig(**{**vision.to_dict(), "name": vision_name}), weights)
    else:
        tower = load_tower(vision, weights)
    return {f"vision.{key}": value for key, value in tower.state_dict().items()}, []


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of pixels in 0..1, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_pixel_statistics(folder: Path, image_size: int) -> PixelStatistics | None:
    """By what a checkpoint's image processor normalises; None where the folder has none.

    ValueError where it makes other pixels than ours does in another respect than cropping: size,
    interpolation, scale.
    """
    processor: Mapping[str, Any] | None = None
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            values = json.loads((folder / file).read_text())
            processor = values.get("image_processor", values)
            break
    if processor is None:
        return None
    cropped = processor.get("do_center_crop") and "crop_size" in processor
    size = processor.get("crop_size" if cropped else "size", image_size)
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    wanted = {
        "size": (sides - {None}, {image_size}),
        "resample": (processor.get("resample", 3), PILImageResampling.BICUBIC),
        "do_normalize": (processor.get("do_normalize", True), True),
        "rescale_factor": (round(1 / processor.get("rescale_factor", 1 / 255)), 255),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise ValueError(f"{folder / file}: {name} is {found}, must be {expected}")
    return PixelStatistics(tuple(processor["image_mean"]), tuple(processor["image_std"]))
