"""What is read of a dense FFN: its maps by name and width, its activation, and nothing beside."""

import open_clip
import pytest
import timm
import torch
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import nn
from torch.testing import assert_close
from transformers.activations import ACT2FN

from llava_compete.moe.dense import LAYOUTS, read_ffn

WIDTH, HIDDEN = 4, 8


def maps(layout):
    """The layout's linear maps by name, of WIDTH and HIDDEN features."""
    rows = HIDDEN * (2 if layout.gated else 1) // len(layout.up)
    up = {name: nn.Linear(WIDTH, rows) for name in layout.up}
    return {**up, layout.down: nn.Linear(HIDDEN, WIDTH)}


def name_of(layout):
    return "+".join(layout.up) + ("-gated" if layout.gated else "")


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_is_known_by_its_names_and_widths(layout):
    found = maps(layout)
    ffn = read_ffn(nn.ModuleDict({**found, "act": nn.SiLU()}), "block 0")
    assert ffn.gated == layout.gated
    assert ffn.down is found[layout.down]
    assert [id(linear) for linear in ffn.up] == [id(found[name]) for name in layout.up]
    assert ffn.activation == "silu"


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_one_linear_map_too_many_is_an_unknown_layout(layout):
    more = {**maps(layout), "extra": nn.Linear(WIDTH, WIDTH), "act": nn.SiLU()}
    with pytest.raises(ValueError, match=r"block 3: a ModuleDict with the .*'extra'.*LAYOUTS"):
        read_ffn(nn.ModuleDict(more), "block 3")


def test_widths_that_no_layout_has_are_an_unknown_layout():
    ffn = {"fc1": nn.Linear(4, 24), "act": nn.GELU(), "fc2": nn.Linear(8, 4)}
    with pytest.raises(ValueError, match=r"\['fc1', 'fc2'\] cannot be turned into experts"):
        read_ffn(nn.ModuleDict(ffn), "block 0")


def test_an_unknown_layout_is_refused_with_what_was_found():
    ffn = nn.ModuleDict({"fc_in": nn.Linear(4, 8), "fc_out": nn.Linear(8, 4)})
    with pytest.raises(ValueError, match=r"block 3: a ModuleDict .*\['fc_in', 'fc_out'\].*LAYOUTS"):
        read_ffn(ffn, "block 3")


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.ReLU(),
        nn.SiLU(),
        open_clip.transformer.QuickGELU(),
        timm.layers.activations.QuickGELU(),
        timm.layers.activations.GELU(),
        timm.layers.activations.GELUTanh(),
        *(ACT2FN[name] for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu")),
    ],
    ids=lambda module: f"{type(module).__module__}.{module}",
)
def test_the_name_read_of_an_activation_is_that_of_the_same_function(activation):
    ffn = Mlp(WIDTH, HIDDEN, act_layer=lambda: activation)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert_close(ACT2FN[read_ffn(ffn, "block 0").activation](x), activation(x), rtol=0, atol=1e-12)


def test_an_activation_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"block 2: the activation RReLU.* is not known; add its"):
        read_ffn(Mlp(WIDTH, HIDDEN, act_layer=nn.RReLU), "block 2")


@pytest.mark.parametrize(
    ("ffn", "found"),
    [
        (Mlp(WIDTH, HIDDEN, norm_layer=nn.LayerNorm), "LayerNorm"),
        (Mlp(WIDTH, HIDDEN, drop=0.1), r"Dropout\(p=0.1"),
        (SwiGLU(WIDTH, HIDDEN, norm_layer=nn.LayerNorm), "LayerNorm"),
        (nn.ModuleDict({"linear_1": nn.Linear(4, 8), "linear_2": nn.Linear(8, 4)}), "none"),
    ],
    ids=["norm", "dropout", "norm of a gated", "no activation"],
)
def test_more_or_less_than_an_activation_between_the_maps_is_refused(ffn, found):
    with pytest.raises(ValueError, match=f"block 1: between its linear maps .*{found}"):
        read_ffn(ffn, "block 1")


def test_biases_of_some_maps_alone_are_refused():
    with pytest.raises(ValueError, match="some have a bias and some have none"):
        read_ffn(Mlp(WIDTH, HIDDEN, bias=(True, False)), "block 1")


def test_gates_of_timm_are_read_and_one_in_the_wrong_half_is_refused():
    assert read_ffn(SwiGLUPacked(WIDTH, 2 * HIDDEN), "block 0").gated
    assert read_ffn(SwiGLU(WIDTH, HIDDEN), "block 0").gated
    with pytest.raises(ValueError, match="block 1: the gate must be the first half"):
        read_ffn(GluMlp(WIDTH, 2 * HIDDEN), "block 1")
