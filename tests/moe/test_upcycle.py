"""An upcycled model is the dense model, for every family of language models and image towers."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llava_compete import LlavaCompeteForConditionalGeneration, MoELayer, upcycle_model
from llava_compete.moe.upcycle import install_moe, slots, upcycle
from llava_compete.projector import build_projector
from tests import tiny


def logits(model, seed=0):
    """Of one picture and some text, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (1, 24), generator=generator)
    ids[0, 2 : 2 + tiny.NUM_PATCHES] = model.config.image_token_id
    size = model.config.vision.image_size
    pixels = torch.randn(1, 3, size, size, generator=generator)
    with torch.no_grad():
        return model.eval()(ids, pixel_values=pixels).logits


@pytest.mark.parametrize(
    ("parts", "layers"),
    [
        pytest.param(("language_model",), None, id="all layers"),
        pytest.param(("language_model",), (1,), id="layer 1"),
        pytest.param(("projector",), None, id="projector"),
        pytest.param(tiny.PARTS, None, id="both parts"),
    ],
)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_say_the_same_before_and_after(dense, family, parts, layers):
    model, _ = dense(family)
    before = logits(model)
    upcycle(model, tiny.moe_configs(parts, layers=layers))
    difference = (logits(model) - before).abs().max().item()
    count = sum(isinstance(module, MoELayer) for module in model.modules())
    wanted = len(layers or (0, 1)) * ("language_model" in parts) + ("projector" in parts)
    print(
        f"\n{family:8} {'+'.join(parts):26} {count} MoE layers  "
        f"largest logit {before.abs().max():7.3f}  largest difference {difference:.1e}",
        end="",
    )
    assert count == wanted
    assert difference < 1e-5 * max(1.0, before.abs().max().item())


def test_a_language_model_with_biases_says_the_same(dense):
    model, _ = dense()
    for layer in model.language_model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            linear = getattr(layer.mlp, name)
            linear.bias = nn.Parameter(torch.randn(linear.out_features))
    before = logits(model)
    upcycle(model, tiny.moe_configs())
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_any_number_of_winners_says_the_same(dense, top_k):
    model, _ = dense()
    before = logits(model)
    upcycle(model, tiny.moe_configs(top_k=top_k))
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_every_expert_is_the_dense_layer(dense):
    model, _ = dense("llama")
    mlp, projector = model.language_model.model.layers[1].mlp, model.projector
    upcycle(model, tiny.moe_configs())
    experts = model.language_model.model.layers[1].mlp.experts
    x_TD = torch.randn(5, 32)
    for copied, source in ((experts, mlp), (model.projector.experts, projector)):
        for output_TD in copied.all_outputs(x_TD).unbind(dim=1):
            assert_close(output_TD, source(x_TD))


def test_perturbed_experts_differ_from_each_other_by_the_asked_share(dense):
    model, _ = dense()
    source = model.language_model.model.layers[0].mlp.down_proj.weight.clone()
    upcycle(model, tiny.moe_configs(), perturbation=0.1)
    down_EOF = model.language_model.model.layers[0].mlp.experts.down_proj
    for expert in range(4):
        noise = down_EOF[expert] - source
        assert_close(noise.std() / source.std(), torch.tensor(0.1), rtol=0.1, atol=0)
        for other in range(expert):
            assert not torch.equal(down_EOF[expert], down_EOF[other])


def test_perturbation_is_seeded_and_differs_between_layers(dense):
    def experts_of(seed):
        model, _ = dense()
        upcycle(model, tiny.moe_configs(), perturbation=0.1, seed=seed)
        return model

    first, again, other = experts_of(0), experts_of(0), experts_of(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    zero, one = (layer.mlp.experts for layer in first.language_model.model.layers)
    same = other.language_model.model.layers[0].mlp.experts
    assert not torch.equal(zero.down_proj, same.down_proj)
    model, _ = dense()
    layers = model.language_model.model.layers
    noise_0 = zero.down_proj - layers[0].mlp.down_proj.weight
    noise_1 = one.down_proj - layers[1].mlp.down_proj.weight
    assert not torch.allclose(noise_0, noise_1, atol=1e-3)


def test_gates_of_all_layers_of_all_parts_differ(dense):
    model, _ = dense()
    upcycle(model, tiny.moe_configs())
    layers = [layer for part in model.moe_layers().values() for layer in part]
    gates = [layer.router.gate.weight for layer in layers]
    assert len(gates) == 3
    for index, gate in enumerate(gates):
        for other in gates[:index]:
            assert not torch.equal(gate, other)


def test_install_makes_the_structure_that_upcycle_makes(dense):
    upcycled, installed = dense("phi3")[0], dense("phi3")[0]
    upcycle(upcycled, tiny.moe_configs(layers=(1,)))
    install_moe(installed, tiny.moe_configs(layers=(1,)))
    shapes = {name: tensor.shape for name, tensor in upcycled.state_dict().items()}
    assert {name: tensor.shape for name, tensor in installed.state_dict().items()} == shapes


def test_upcycled_experts_take_the_dtype_of_the_dense_layer(dense):
    model, _ = dense()
    model.bfloat16()
    report = upcycle_model(model, tiny.moe_configs())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert report.largest_difference <= 8 * 0.0079 * max(1.0, report.largest_logit)


def test_upcycle_model_reports_sizes_and_writes_the_config(dense):
    model, _ = dense()
    report = upcycle_model(model, tiny.moe_configs(num_experts=6, top_k=2))
    dense_ffn = 2 * 3 * 32 * 64 + 2 * 32 * 32 + 2 * 32  # two llama layers and the projector
    gates = 3 * 6 * 32
    assert report.after.total == report.before.total + 5 * dense_ffn + gates
    assert report.before.active == report.before.total
    assert report.after.active == report.before.total + dense_ffn + gates
    assert model.config.moe_configs == tiny.moe_configs(num_experts=6, top_k=2)
    assert report.largest_difference < 1e-5 * max(1, report.largest_logit)


def test_upcycling_twice_is_refused(dense):
    model, _ = dense()
    upcycle_model(model, tiny.moe_configs(("projector",)))
    with pytest.raises(ValueError, match=r"has experts already, in \['projector'\]"):
        upcycle_model(model, tiny.moe_configs())
    with pytest.raises(ValueError, match="projector is a mixture of experts already"):
        upcycle(model, tiny.moe_configs(("projector",)))


def test_a_change_of_the_output_is_an_error(dense, monkeypatch):
    model, _ = dense()
    true_upcycle = upcycle

    def spoiling(model, configs, **kwargs):
        true_upcycle(model, configs, **kwargs)
        with torch.no_grad():
            model.projector.experts.down_proj.mul_(1.01)

    monkeypatch.setattr("llava_compete.checkpoint.upcycle", spoiling)
    with pytest.raises(RuntimeError, match="upcycling changed the output by"):
        upcycle_model(model, tiny.moe_configs())


def test_an_unknown_part_is_refused_with_the_known_ones(dense):
    model, _ = dense()
    with pytest.raises(ValueError, match=r"parts: 'projektor'.*did you mean projector"):
        list(slots(model, "projektor", tiny.moe_configs()["projector"]))


def test_layers_out_of_range_and_layers_of_the_projector_are_refused(dense):
    model, _ = dense()
    configs = tiny.moe_configs(("language_model",), layers=(0, 2))
    with pytest.raises(ValueError, match=r"layers=\(0, 2\): the language model has layers 0 to 1"):
        install_moe(model, configs)
    with pytest.raises(ValueError, match="the projector is one layer"):
        install_moe(model, {"projector": configs["language_model"]})


def test_the_linear_projector_cannot_become_experts(dense):
    model, _ = dense()
    model.projector = build_projector("linear", 32, 32)
    with pytest.raises(ValueError, match="projector: a LinearProjector with the linear maps"):
        upcycle(model, tiny.moe_configs(("projector",)))


def test_the_structure_can_be_built_on_the_meta_device_as_from_pretrained_does(dense):
    model, _ = dense()
    upcycle_model(model, tiny.moe_configs())
    with torch.device("meta"):
        empty = LlavaCompeteForConditionalGeneration(model.config)
    assert set(empty.state_dict()) == set(model.state_dict())
