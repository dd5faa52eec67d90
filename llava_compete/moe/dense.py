"""What a dense feed-forward layer is made of: linear maps up, an activation, a linear map down.

A new FFN layout is one more entry in ``LAYOUTS``.
"""

from typing import NamedTuple

import open_clip
import timm
from torch import nn
from transformers.activations import ACT2CLS


class FFNLayout(NamedTuple):
    """Which linear maps of a dense feed-forward layer are what."""

    up: tuple[str, ...]  # stacked on their outputs, the gate's rows before the up projection's
    down: str
    gated: bool


# A new family is usually here already; else add the names of its linear maps.
LAYOUTS = (
    # Llama, Mistral, Qwen2, Qwen3
    FFNLayout(up=("gate_proj", "up_proj"), down="down_proj", gated=True),
    # Phi-3
    FFNLayout(up=("gate_up_proj",), down="down_proj", gated=True),
    # the projector mlp2x_gelu
    FFNLayout(up=("linear_1",), down="linear_2", gated=False),
    # open_clip's vision transformers
    FFNLayout(up=("c_fc",), down="c_proj", gated=False),
    # timm's: Mlp, SwiGLUPacked, SwiGLU
    FFNLayout(up=("fc1",), down="fc2", gated=False),
    FFNLayout(up=("fc1",), down="fc2", gated=True),
    FFNLayout(up=("fc1_g", "fc1_x"), down="fc2", gated=True),
)

# The name in transformers' ACT2FN of what a module computes; nn.GELU has two.
ACTIVATIONS: dict[type, str] = {
    **{cls: name for name, cls in ACT2CLS.items() if isinstance(cls, type)},
    nn.SiLU: "silu",
    open_clip.transformer.QuickGELU: "quick_gelu",
    timm.layers.activations.QuickGELU: "quick_gelu",
    timm.layers.activations.GELU: "gelu",
    timm.layers.activations.GELUTanh: "gelu_pytorch_tanh",
}


class DenseFFN(NamedTuple):
    """The linear maps of a dense feed-forward layer, and its activation's name in ACT2FN."""

    up: tuple[nn.Linear, ...]
    down: nn.Linear
    gated: bool
    activation: str


def read_ffn(ffn: nn.Module, where: str) -> DenseFFN:
    """The layer's maps; ValueError naming what was found where experts could not be its copies."""
    children = dict(ffn.named_children())
    linear = {name: child for name, child in children.items() if isinstance(child, nn.Linear)}
    layout = _layout(linear)
    if layout is None:
        raise ValueError(
            f"{where}: a {type(ffn).__name__} with the linear maps {sorted(linear)} cannot be "
            f"turned into experts; known layouts: "
            f"{[[*layout.up, layout.down] for layout in LAYOUTS]}. "
            f"Add it to LAYOUTS in llava_compete/moe/dense.py"
        )
    biases = {name: child.bias is not None for name, child in linear.items()}
    if len(set(biases.values())) > 1:
        raise ValueError(
            f"{where}: of the linear maps some have a bias and some have none ({biases}); experts "
            f"have all or none"
        )
    if isinstance(ffn, timm.layers.GluMlp) and ffn.gate_last:
        raise ValueError(f"{where}: the gate must be the first half of fc1's outputs, not the last")
    others = {
        name: child
        for name, child in children.items()
        if name not in linear and not _does_nothing(child)
    }
    return DenseFFN(
        tuple(linear[name] for name in layout.up),
        linear[layout.down],
        layout.gated,
        _activation(others, where),
    )


def _layout(linear: dict[str, nn.Linear]) -> FFNLayout | None:
    """By names, and by widths where a gate has no map of its own."""
    for layout in LAYOUTS:
        if set(linear) == {*layout.up, layout.down}:
            rows = sum(linear[name].out_features for name in layout.up)
            if rows == linear[layout.down].in_features * (2 if layout.gated else 1):
                return layout
    return None


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _activation(others: dict[str, nn.Module], where: str) -> str:
    """The name of the one module beside the linear maps that does something."""
    if len(others) != 1:
        raise ValueError(
            f"{where}: between its linear maps experts have one activation and nothing else, and "
            f"here are {others or 'none'}: a norm or a dropout in the FFN is not supported"
        )
    (module,) = others.values()
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    if type(module) not in ACTIVATIONS:
        raise ValueError(
            f"{where}: the activation {module} is not known; add its name in transformers' ACT2FN "
            f"to ACTIVATIONS in llava_compete/moe/dense.py"
        )
    return ACTIVATIONS[type(module)]
