"""Low-rank adapters (LoRA, arXiv:2106.09685) on the dense linear maps of a model's parts, by peft.

A model with adapters is an ordinary model and its checkpoints are ordinary checkpoints: config.json
says ``lora``, the weights hold the frozen maps (``base_layer``) beside ``lora_A`` and ``lora_B``.
Training, resuming and evaluating know nothing more; ``merge_lora`` makes a model without adapters.

Experts and routers never have adapters: they are trained whole (training/parts.py). peft is
imported where there are adapters, and only there.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from llava_compete.moe import MoELayer
from llava_compete.names import nearest

PARTS = ("vision", "projector", "language_model")
MARK = ".lora_"  # in the names of an adapter's parameters


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which maps have adapters, and of what size; the output gains alpha / r * B A x.

    r and alpha are those of LLaVA-1.5's fine-tuning by LoRA. Raises ValueError where a value is
    impossible.
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.05  # of an adapter's input, in training
    targets: tuple[str, ...] | None = None  # last names of linear maps; None: all of the parts
    parts: tuple[str, ...] = ("language_model",)
    quantize: Literal["nf4"] | None = None  # adapted maps in 4 bits while training: quantized.py

    def __post_init__(self) -> None:
        for name in ("targets", "parts"):  # JSON gives lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.r < 1 or self.alpha < 1:
            raise ValueError(f"lora: r={self.r} and alpha={self.alpha} must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora: dropout={self.dropout} must be at least 0 and below 1")
        if not self.parts or self.targets == ():
            raise ValueError(f"lora: parts={self.parts}, targets={self.targets} must not be empty")
        if self.quantize not in (None, "nf4"):
            raise ValueError(f"lora: quantize={self.quantize!r} must be nf4 or left out")
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"lora: unknown part {part!r}{nearest(part, PARTS)}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> "LoraSettings":
        """From a recipe or config.json; ValueError for an unknown key or another type."""
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise ValueError(
                    f"lora: unknown key {key!r}{nearest(key, cls.__dataclass_fields__)}"
                )
        try:
            return cls(**values)
        except TypeError as error:  # text where numbers are compared
            raise ValueError(f"lora={values}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        lists = {"targets": self.targets and list(self.targets), "parts": list(self.parts)}
        return {**asdict(self), **lists}


def install_lora(model: nn.Module, settings: LoraSettings) -> None:
    """Put adapters beside the maps that ``settings`` mean; the model's __init__ calls it.

    B of a fresh adapter is 0, so that it changes nothing yet; A is drawn as nn.Linear's weight is.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_names(model, settings),
        bias="none",
    )
    inject_adapter_in_model(config, model)


def add_lora(model: Any, settings: LoraSettings, seed: int) -> None:
    """Give a model without adapters fresh ones, the same for the same ``seed``; config.json knows.

    torch's global generator is left as it was. A model that has these adapters already keeps them;
    ValueError where it has others.
    """
    if model.config.lora is not None:
        if LoraSettings.of(model.config.lora) != settings:
            raise ValueError(
                f"lora={settings.to_dict()}, but the checkpoint has adapters already, of "
                f"{model.config.lora}: leave lora out to train these on, or make them a part of "
                f"the weights by `llava-compete merge`"
            )
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        install_lora(model, settings)
    model.config.lora = settings.to_dict()


def target_names(model: Any, settings: LoraSettings) -> list[str]:
    """Full names of the linear maps that get adapters, in the model's order.

    Left out are routers, the language model's head, and maps whose weight an attention reads
    without calling them: nn.MultiheadAttention, timm's BEiT and EVA. ValueError for a target that
    no part has.
    """
    found = [
        name
        for part in settings.parts
        for name in _linear_maps(model.get_submodule(part), part)
        if model.get_submodule(name) is not model.get_output_embeddings()
    ]
    if settings.targets is None:
        if not found:
            raise ValueError(f"lora: {', '.join(settings.parts)} have no dense linear map to adapt")
        return found
    last = {name.rpartition(".")[2] for name in found}
    for target in settings.targets:
        if target not in last:
            raise ValueError(
                f"lora: no dense linear map of {', '.join(settings.parts)} is called "
                f"{target!r}{nearest(target, last)}"
            )
    return [name for name in found if name.rpartition(".")[2] in settings.targets]


def _linear_maps(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the linear maps in the module ``name``, itself among them."""
    if isinstance(module, nn.Linear):
        yield name
    elif not isinstance(module, MoELayer | nn.MultiheadAttention):
        # timm's BEiT and EVA have biases of queries and values apart, and then read qkv's weight.
        is_read = "q_bias" in dict(module.named_parameters(recurse=False))
        for child_name, child in module.named_children():
            if not (is_read and child_name == "qkv"):
                yield from _linear_maps(child, f"{name}.{child_name}")


@torch.no_grad()
def merge_lora(model: Any) -> int:
    """Add every adapter to the map that it stands beside, in place; how many there were.

    The sum is rounded to the weights' dtype: load in float32 what was trained in float32.
    ValueError for a model without adapters.
    """
    if model.config.lora is None:
        raise ValueError("the model has no adapters to merge: config.json has no lora")
    from peft.tuners.lora import LoraLayer

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    model.config.lora = None
    return len(layers)
