"""The image tower of a checkpoint by itself, and the key of the features that it makes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoProcessor, LlavaProcessor

from llava_compete.checkpoint import Model, read_config, weight_files
from llava_compete.data.features import FeatureCache, FeatureKey
from llava_compete.vision import ImageTower, VisionConfig

PREFIX = "vision."  # of the tower's tensors in a checkpoint


class Tower(NamedTuple):
    """What turns pictures into features, and the key of those."""

    model: ImageTower  # float32, frozen
    processor: LlavaProcessor
    key: FeatureKey


def load_tower(checkpoint: Path) -> Tower:
    """The image tower of a checkpoint directory, and nothing else of its weights.

    ValueError for a tower with experts, whose routers have to run in training, or with adapters.
    """
    config = read_config(checkpoint)
    if "vision" in config.moe_configs:
        raise ValueError(
            f"checkpoint {checkpoint}: its image tower has experts, whose routers have to run in "
            f"training: only a dense tower's features can be cached"
        )
    if config.lora is not None and "vision" in config.lora["parts"]:
        raise ValueError(
            f"checkpoint {checkpoint}: its image tower has adapters: make them a part of it by "
            f"`llava-compete merge`"
        )
    model = ImageTower(config.vision)
    weights = _tower_weights(checkpoint)
    if set(weights) != set(model.state_dict()):
        differing = sorted(set(weights) ^ set(model.state_dict()))
        raise ValueError(f"checkpoint {checkpoint} does not fit its config.json: {differing[:5]}")
    model.load_state_dict(weights)
    processor = AutoProcessor.from_pretrained(checkpoint)
    key = _key(config.vision, weights, processor)
    return Tower(model.requires_grad_(False).eval(), processor, key)


def open_features(folder: Path, model: Model, checkpoint: Path) -> FeatureCache:
    """The cached features for a training of ``model``, which was loaded from ``checkpoint``.

    ValueError where they are not what its tower would make, now or after a step of the training.
    """
    if any(parameter.requires_grad for parameter in model.vision.parameters()):
        raise ValueError(
            f"features={folder}: the image tower is trained and would outgrow its cached features; "
            f"leave features out, or vision (and, of a tower with experts, these) out of trainable"
        )
    if "vision" in model.moe_layers():
        raise ValueError(
            f"features={folder}: the image tower has experts, whose routers have to run in "
            f"training; leave features out"
        )
    cache = FeatureCache(folder)
    cache.check(read_key(checkpoint))
    return cache


def read_key(checkpoint: Path) -> FeatureKey:
    """The key of the features that the checkpoint's tower makes, without the tower."""
    vision = read_config(checkpoint).vision
    processor = AutoProcessor.from_pretrained(checkpoint)
    return _key(vision, _tower_weights(checkpoint), processor)


def _key(
    vision: VisionConfig, weights: Mapping[str, Tensor], processor: LlavaProcessor
) -> FeatureKey:
    return FeatureKey(
        tower=fingerprint(weights),
        vision=_plain(vision.to_dict()),
        image_processor=_plain(processor.image_processor.to_dict()),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(values))


def _tower_weights(checkpoint: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in weight_files(checkpoint):
        try:
            with safe_open(checkpoint / file, framework="pt") as opened:
                names = [name for name in opened.keys() if name.startswith(PREFIX)]  # noqa: SIM118
                weights |= {name.removeprefix(PREFIX): opened.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(f"checkpoint {checkpoint} is damaged: {error}") from error
    return weights


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """sha256 of the tensors' names, shapes and float32 values, by name.

    A checkpoint that was saved in bfloat16 and one that holds the same numbers in float32 agree.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        plain = value.float() if value.is_floating_point() else value
        digest.update(f"{name} {list(plain.shape)} {plain.dtype}\n".encode())
        digest.update(plain.contiguous().numpy().data)
    return digest.hexdigest()
