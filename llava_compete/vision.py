"""Image towers over open_clip: pixels -> patch features.  The only file that imports open_clip.

N images, H and W pixels, P patches an image, V feature width over all scales.

Only the image side of a CLIP-like model is built, and only up to the block whose output is used.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.model import _build_vision_tower
from torch import Tensor, nn

from llava_compete.multiscale import check_scales, count_crops, cut, put_together
from llava_compete.names import nearest
from llava_compete.weight_files import read_weights

TIMM_PREFIX = "timm/"

# Trunks whose blocks see every token of a picture, patches and prefix, and have one MLP each.
TRANSFORMERS = (
    open_clip.transformer.VisionTransformer,
    timm.models.vision_transformer.VisionTransformer,
    timm.models.eva.Eva,
    timm.models.beit.Beit,
)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Everything needed to rebuild an image tower without open_clip's registry."""

    name: str  # open_clip model name, or timm/NAME
    layer: int | Literal["final"]  # block whose output is the feature; "final": the trunk's own
    tower: dict[str, Any]  # open_clip's vision_cfg; with timm_kwargs, timm's create_model
    embed_dim: int
    quick_gelu: bool
    image_size: int  # pixels, square
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int  # V
    num_patches: int  # P
    scales: tuple[int, ...] = (1,)  # sizes at which a picture is looked at; multiscale.py

    def __post_init__(self) -> None:
        for name in ("mean", "std", "scales"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_scales(self.scales, self.num_patches)

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        return self.image_size // round(self.num_patches**0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        lists = {name: list(getattr(self, name)) for name in ("mean", "std", "scales")}
        return {**asdict(self), **lists}


class ImageTower(nn.Module):
    """pixels (N, 3, H, W) -> patch features (N, P, V), class token dropped.

    The crops of all scales go through the trunk in one call.

    Batch-norm statistics are those of the checkpoint, also in training: a batch of a few pictures
    a rank is no sample to normalise by.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _build_trunk(config)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        crops_M3HW = cut(pixels_N3HW, self.config.scales)
        features = _features(self.trunk, crops_M3HW, final=self.config.layer == "final")
        features_MPV = features if features.dim() == 3 else features.flatten(2).transpose(1, 2)
        return put_together(features_MPV, self.config.scales)

    def blocks(self) -> dict[str, nn.Module]:
        """The transformer blocks by name below the tower, in order, each with its ``mlp``.

        ValueError for a tower without such blocks. Those behind the one used are not built.
        """
        trunk: Any = self.trunk
        if isinstance(trunk, TRANSFORMERS):
            of_open_clip = isinstance(trunk, open_clip.transformer.VisionTransformer)
            root = "trunk.transformer.resblocks" if of_open_clip else "trunk.blocks"
            blocks = self.get_submodule(root)
            found = {f"{root}.{name}": block for name, block in blocks.named_children()}
            if all("mlp" in dict(block.named_children()) for block in found.values()):
                return found
        raise ValueError(
            f"image tower {self.config.name}: a {type(trunk).__name__} has no transformer blocks "
            f"with one MLP each; supported are {', '.join(map(_full_name, TRANSFORMERS))}"
        )

    def tokens_per_image(self) -> int:
        """Tokens of an image in each of ``blocks``: patches and prefix tokens of all its crops."""
        trunk: Any = self.trunk
        of_open_clip = isinstance(trunk, open_clip.transformer.VisionTransformer)
        prefix = 1 if of_open_clip else trunk.num_prefix_tokens
        return count_crops(self.config.scales) * (self.config.num_patches + prefix)

    def train(self, mode: bool = True) -> "ImageTower":
        trained = any(parameter.requires_grad for parameter in self.parameters())
        super().train(mode and trained)  # a frozen tower has no dropout either
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def _build_trunk(config: VisionConfig) -> nn.Module:
    trunk: Any
    if "timm_kwargs" in config.tower:  # which open_clip's vision_cfg cannot say
        trunk = timm.create_model(config.tower["timm_model_name"], **config.tower["timm_kwargs"])
    else:
        trunk = _build_vision_tower(config.embed_dim, dict(config.tower), config.quick_gelu)
        if "timm_model_name" in config.tower:
            trunk = trunk.trunk  # open_clip's wrapper adds only pooling and projection
    final = config.layer == "final"
    if final and not isinstance(trunk, open_clip.transformer.VisionTransformer):
        trunk.reset_classifier(0, "")
    else:
        last = [-1 if final else config.layer]
        trunk.prune_intermediate_layers(last, prune_norm=not final, prune_head=True)
    return trunk


def _features(trunk: Any, pixels_N3HW: Tensor, final: bool) -> Tensor:
    """(N, V, h, w), or (N, P, V) of a timm transformer's final features."""
    if isinstance(trunk, open_clip.transformer.VisionTransformer):
        return trunk.forward_intermediates(
            pixels_N3HW, indices=1, normalize_intermediates=final, intermediates_only=True
        )["image_intermediates"][0]
    if not final:
        return trunk.forward_intermediates(pixels_N3HW, indices=1, intermediates_only=True)[0]
    features = trunk.forward_features(pixels_N3HW)
    return features if features.dim() == 4 else features[:, trunk.num_prefix_tokens :]


def describe_tower(
    name: str,
    layer: int | Literal["final"] = -2,
    *,
    scales: tuple[int, ...] = (1,),
    pretrained: str | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    quick_gelu: bool | None = None,
) -> VisionConfig:
    """Look ``name`` up (open_clip, or timm after ``timm/``) and measure its features' shape.

    What is not given of ``mean``, ``std`` (of pixels in 0..1) and ``quick_gelu`` (OpenAI's CLIP)
    comes from the pretrained tag, else from what all published weights of that model agree on;
    ValueError where they do not agree.
    """
    model = _model_config(name)
    tower = {**model["vision_cfg"], "timm_model_pretrained": False}
    if "timm_model_name" not in tower:
        del tower["timm_model_pretrained"]
    size = image_size or tower["image_size"]
    if not isinstance(size, int):
        raise ValueError(f"image tower {name}: image_size={size} is not square; give image_size")
    tower["image_size"] = size
    given: dict[str, Any] = {"mean": mean, "std": std, "quick_gelu": quick_gelu}
    if None in given.values():
        published = _published(name, tower, pretrained)
        if len(published) != 1:
            raise ValueError(
                f"image tower {name}: its published weights differ in {' '.join(given)} "
                f"({len(published)} ways): give image_mean, image_std (three numbers each) and "
                f"quick_gelu, or a pretrained tag"
            )
        given = {
            key: known if given[key] is None else given[key] for key, known in published[0].items()
        }
    config = VisionConfig(
        name=name,
        layer=layer,
        tower=tower,
        embed_dim=model["embed_dim"],
        image_size=size,
        **given,
        width=0,
        num_patches=0,
    )
    try:
        with torch.device("meta"):
            features_1PV = ImageTower(config)(torch.zeros(1, 3, size, size))
    except (AssertionError, AttributeError, IndexError) as error:
        raise ValueError(
            f"image tower {name}: no features from layer {layer!r}: {error}"
        ) from error
    _, num_patches, width = features_1PV.shape
    return replace(config, num_patches=num_patches, width=width * len(scales), scales=tuple(scales))


def _model_config(name: str) -> dict[str, Any]:
    if name.startswith(TIMM_PREFIX):
        timm_name = name.removeprefix(TIMM_PREFIX)
        if not timm.is_model(timm_name):
            raise ValueError(
                f"timm has no model {timm_name!r}{nearest(timm_name, timm.list_models())}"
            )
        size = timm.get_pretrained_cfg(timm_name, allow_unregistered=True).input_size[-1]
        tower = {"timm_model_name": timm_name, "timm_pool": "", "timm_proj": "none"}
        return {"embed_dim": 0, "vision_cfg": {**tower, "image_size": size}}
    config = open_clip.get_model_config(name)
    if config is None:
        known = open_clip.list_models()
        raise ValueError(
            f"open_clip has no model {name!r}{nearest(name, known)} "
            f"(timm models: {TIMM_PREFIX}NAME; supported are image towers of open_clip and timm)"
        )
    return config


def _published(name: str, tower: dict[str, Any], pretrained: str | None) -> list[dict[str, Any]]:
    """The distinct pixel statistics and activations of the model's published weights."""
    if name.startswith(TIMM_PREFIX):
        configs = [timm.get_pretrained_cfg(tower["timm_model_name"]).to_dict()]
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        tags = [pretrained] if pretrained in tags else tags
        configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    distinct: list[dict[str, Any]] = []
    for config in configs:
        entry = {
            "mean": tuple(config.get("mean") or open_clip.OPENAI_DATASET_MEAN),
            "std": tuple(config.get("std") or open_clip.OPENAI_DATASET_STD),
            "quick_gelu": bool(config.get("quick_gelu")) or "quickgelu" in name,
        }
        if entry not in distinct:
            distinct.append(entry)
    return distinct


def load_tower(config: VisionConfig, pretrained: str) -> ImageTower:
    """The tower with its weights: a file (.safetensors, .pt, .pth, .bin) or a published tag.

    A file holds a whole CLIP model (``visual.*``), its image side alone, or a timm model. Keys of
    parts that are not built are left unread; a key the tower needs and the file lacks is a
    ValueError. Pickled files are read with ``weights_only``.
    """
    tower = ImageTower(config)
    if Path(pretrained).is_file():
        state = read_weights(Path(pretrained))
    else:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        if pretrained not in tags:
            raise ValueError(
                f"pretrained={pretrained!r} of {config.name} is neither a file nor a published "
                f"tag; tags: {tags or 'none'}"
            )
        tag = open_clip.get_pretrained_cfg(config.name, pretrained)
        state = read_weights(Path(open_clip.download_pretrained(tag)))
    wanted = tower.trunk.state_dict()
    found = {}
    for key, value in state.items():
        for prefix in ("visual.trunk.", "visual.", "trunk.", ""):
            if key.startswith(prefix) and key.removeprefix(prefix) in wanted:
                found[key.removeprefix(prefix)] = value
                break
    missing = sorted(key for key in set(wanted) - set(found) if "num_batches_tracked" not in key)
    if missing:
        raise ValueError(
            f"{pretrained} lacks {len(missing)} of the {len(wanted)} tensors of {config.name}: "
            f"{missing[:5]}; it holds {sorted(state)[:5]}"
        )
    tower.trunk.load_state_dict(found, strict=False)
    return tower
