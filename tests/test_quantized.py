"""Maps in 4 bits against a plain loop over blocks; a model of them against its own checkpoint."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llava_compete import load, save
from llava_compete.lora import LoraSettings, add_lora
from llava_compete.training.parts import count_trainable, set_trainable
from llava_compete.training.space import saved_sizes
from tests.test_lora import logits, move_adapters

pytest.importorskip("bitsandbytes")
from llava_compete.quantized import BLOCK, QuantizedLinear, quantize_frozen

# The sixteen values of NormalFloat4 (arXiv:2305.14314, appendix E).
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)


def rounded_loop(weight):
    """Each number to the nearest of its block's sixteen."""
    flat = weight.flatten().clone()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        values = NF4 * block.abs().max()
        for index, number in enumerate(block.tolist()):
            block[index] = values[(values - number).abs().argmin()]
    return flat.view_as(weight)


def make_linear(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(48, 20, bias=bias).to(dtype).requires_grad_(False)


def test_weights_are_the_nearest_of_their_blocks_sixteen():
    linear = make_linear()
    restored = QuantizedLinear(linear).restored()
    assert_close(restored, rounded_loop(linear.weight), atol=1e-7, rtol=1e-6)
    assert (restored - linear.weight).abs().max() > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_restored_weight(bias):
    linear = make_linear(bias)
    quantized = QuantizedLinear(linear)
    x = torch.randn(3, 5, 48, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    ours, plain = quantized(x), nn.functional.linear(again, quantized.restored(), linear.bias)
    assert torch.equal(ours, plain)
    ours.square().sum().backward()
    plain.square().sum().backward()
    assert torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_restored_is_stored_to_the_bit(dtype):
    linear = make_linear(dtype=dtype)
    first = QuantizedLinear(linear)
    state = first.state_dict()
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "weight": (dtype, (20, 48)),
        "bias": (dtype, (20,)),
    }
    second = QuantizedLinear(nn.Linear(48, 20, dtype=dtype))
    second.load_state_dict(state)
    assert torch.equal(second.packed, first.packed)
    assert torch.equal(second.restored(), state["weight"])
    linear.load_state_dict(state)  # an ordinary map of the same numbers
    x = torch.randn(3, 48, dtype=dtype)
    assert torch.equal(linear(x), first(x))


def test_a_cast_leaves_the_magnitudes_alone():
    quantized = QuantizedLinear(make_linear())
    before = quantized.restored()
    assert torch.equal(quantized.bfloat16().restored(), before)


def test_autocast_computes_in_its_dtype():
    quantized, x = QuantizedLinear(make_linear()), torch.randn(3, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantized(x).dtype == torch.bfloat16


def test_a_state_that_does_not_fit_is_refused():
    quantized = QuantizedLinear(make_linear())
    with pytest.raises(RuntimeError, match="Missing key"):
        quantized.load_state_dict({"bias": torch.ones(20)})
    with pytest.raises(RuntimeError, match=r"weight is \[20, 32\], not \[20, 48\]"):
        quantized.load_state_dict({"bias": torch.ones(20), "weight": torch.ones(20, 32)})


def test_a_model_in_4_bits_computes_what_its_checkpoint_computes(checkpoints, tmp_path):
    model, processor = load(checkpoints["moe"])
    before = logits(model)
    add_lora(model, LoraSettings(r=4, alpha=6, quantize="nf4"), seed=0)
    assert quantize_frozen(model, torch.device("cpu")) == 8
    move_adapters(model)
    ours = logits(model)
    assert (ours - before).abs().max() > 1e-3
    save(model, processor, tmp_path / "out")
    loaded, _ = load(tmp_path / "out")
    assert not any(isinstance(module, QuantizedLinear) for module in loaded.modules())
    assert torch.equal(logits(loaded), ours)


def test_counted_and_weighed_as_the_maps_that_a_checkpoint_holds(checkpoints):
    model, _ = load(checkpoints["moe"])
    add_lora(model, LoraSettings(r=4, alpha=6, quantize="nf4"), seed=0)
    set_trainable(model, ["projector"])
    counts, sizes = count_trainable(model), saved_sizes(model, stage=2)
    quantize_frozen(model, torch.device("cpu"))
    assert count_trainable(model) == counts
    assert saved_sizes(model, stage=2) == sizes


@pytest.mark.gpu
def test_a_gpu_restores_what_a_cpu_restores():
    linear = make_linear()
    there = QuantizedLinear(make_linear().cuda())
    assert_close(there.restored().cpu(), QuantizedLinear(linear).restored(), atol=1e-7, rtol=1e-6)
