"""Image tower blocks as mixtures of experts: the same model before, counted tokens, own values."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from llava_compete import MoEConfig, MoELayer, load, save, upcycle_model
from llava_compete.moe.upcycle import PARTS, slots, upcycle
from llava_compete.training.parts import count_trainable, set_trainable
from llava_compete.vision import ImageTower, describe_tower
from tests import tiny
from tests.moe.test_upcycle import logits

TOWERS = {
    "open_clip": (tiny.make_tower, {}),
    "open_clip quick_gelu": (tiny.make_tower, {"quick_gelu": True}),
    "open_clip final": (tiny.make_tower, {"layer": "final"}),
    "open_clip scales": (tiny.make_tower, {"scales": (1, 3)}),
    "timm": (tiny.make_timm_tower, {}),
    "timm scales": (tiny.make_timm_tower, {"scales": (1, 2, 3)}),
}
SUBSETS = [
    parts
    for size in (1, 2, 3)
    for parts in itertools.combinations(PARTS, size)
    if "vision" in parts
]
towers = pytest.mark.parametrize("tower", TOWERS)


@pytest.fixture
def composed(tmp_path):
    def build(tower="open_clip"):
        make, values = TOWERS[tower]
        return tiny.compose_tiny(tmp_path, make=make, **values)

    return build


def moe_count(model):
    return sum(isinstance(module, MoELayer) for module in model.modules())


@towers
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_a_model_says_the_same_before_and_after(composed, tower, parts):
    model, _ = composed(tower)
    before, blocks = logits(model), len(model.vision.blocks())
    upcycle(model, tiny.moe_configs(parts))
    difference = (logits(model) - before).abs().max().item()
    print(
        f"\n{tower:20} {'+'.join(parts):35} {moe_count(model)} MoE layers  "
        f"largest logit {before.abs().max():7.3f}  largest difference {difference:.1e}",
        end="",
    )
    assert moe_count(model) == blocks + ("projector" in parts) + 2 * ("language_model" in parts)
    assert difference < 1e-5 * max(1.0, before.abs().max().item())


@towers
def test_every_expert_is_the_dense_layer(composed, tower):
    model, _ = composed(tower)
    dense = [block.mlp for block in model.vision.blocks().values()]
    upcycle(model, tiny.moe_configs(("vision",)))
    for block, mlp in zip(model.vision.blocks().values(), dense, strict=True):
        x_TD = 3 * torch.randn(5, block.mlp.experts.in_features)  # where GELUs differ
        for output_TD in block.mlp.experts.all_outputs(x_TD).unbind(dim=1):
            assert_close(output_TD, mlp(x_TD))


def test_the_chosen_blocks_become_experts_and_no_others(composed):
    model, _ = composed("timm")
    before = logits(model)
    upcycle_model(model, {"vision": MoEConfig(layers=(1, 4))})
    kinds = [isinstance(block.mlp, MoELayer) for block in model.vision.blocks().values()]
    assert kinds == [False, True, False, False, True]
    assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", ["open_clip quick_gelu", "timm scales"])
def test_parts_with_values_of_their_own_come_back_from_disk(composed, tmp_path, tower):
    model, processor = composed(tower)
    configs = {
        "vision": MoEConfig(num_experts=6, top_k=3, router="topk", layers=(0,)),
        "projector": MoEConfig(num_experts=3, top_k=1, loss_weights={"balance": 0.5}),
        "language_model": MoEConfig(num_experts=2, top_k=2, router="cosine", layers=(1,)),
    }
    upcycle_model(model, configs, perturbation=0.5)
    save(model, processor, tmp_path / "out")
    loaded, _ = load(tmp_path / "out")
    assert loaded.config.moe_configs == configs
    assert loaded.config.vision == model.config.vision
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(logits(loaded), logits(model))
    for part, (layer,) in loaded.moe_layers().items():
        assert layer.experts.num_experts == configs[part].num_experts
        assert layer.router.spec.top_k == configs[part].top_k


def test_gates_of_all_layers_of_all_parts_differ(composed):
    model, _ = composed()
    upcycle(model, tiny.moe_configs(PARTS))
    layers = [layer for part in model.moe_layers().values() for layer in part]
    assert len(layers) == 2 + 1 + 2
    for one, other in itertools.combinations(layers, 2):
        assert not torch.equal(one.router.gate.weight, other.router.gate.weight)


@towers
def test_the_mask_has_every_token_of_every_block_and_a_blank_image_is_counted_nowhere(
    composed, tower
):
    model, processor = composed(tower)
    upcycle_model(model, tiny.moe_configs(PARTS), perturbation=0.5)
    seen = []
    for layer in model.moe_layers()["vision"]:
        layer.register_forward_pre_hook(
            lambda layer, args: seen.append((layer.mask_T, args[0][..., 0].numel()))
        )
    pictures = model.train()(**tiny.make_batch(processor, range(2)))
    blank = model(**tiny.make_batch(processor, range(2), text_only=range(2)))
    blocks = len(model.moe_layers()["vision"])
    for index, (mask_T, num_tokens) in enumerate(seen):
        assert mask_T.shape == (num_tokens,)
        assert mask_T.all() if index < blocks else not mask_T.any()
    assert len(seen) == 2 * blocks
    for output, finite in ((pictures, True), (blank, False)):
        vision = {k: v for k, v in output.metrics.items() if k.startswith("vision/load")}
        assert len(vision) == 4
        assert all(value.isfinite() == finite for value in vision.values())
        assert output.loss.isfinite()
        assert output.losses["vision/balance"].isfinite() == finite
    blank.loss.backward()
    for name, parameter in model.vision.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.parametrize("tower", ["open_clip", "timm scales"])
@pytest.mark.parametrize("competing", [False, True])
def test_every_gate_and_every_expert_of_the_tower_is_trained(composed, tower, competing):
    model, processor = composed(tower)
    upcycle_model(model, tiny.moe_configs(PARTS), perturbation=0.5)
    output = tiny.compete(model, competing)(**tiny.make_batch(processor, range(3)))
    output.loss.backward()
    assert ("vision/agreement" in output.metrics) == competing
    for layer in model.moe_layers()["vision"]:
        assert layer.router.gate.weight.grad.any()
        chosen_E = layer.experts.down_proj.grad.flatten(1).any(dim=1)
        assert chosen_E.all() if competing else chosen_E.any()


def test_a_picture_routes_alike_whatever_is_in_its_batch(composed):
    model, _ = composed("timm scales")
    upcycle_model(model, tiny.moe_configs(("vision",)), perturbation=0.5)
    size, patches = model.config.vision.image_size, model.config.vision.num_patches
    pixels = torch.randn(3, 3, size, size)
    ids_BL = torch.full((3, patches), model.config.image_token_id)
    with torch.no_grad():
        together = model.embed(ids_BL, pixels)
        alone = model.embed(ids_BL[:1], pixels[1:2])
    assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_parts_to_train_reach_the_towers_experts_and_routers(composed):
    model, _ = composed()
    upcycle(model, tiny.moe_configs(("vision",)))
    set_trainable(model, ["experts"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4
    assert all(name.startswith("vision.") and ".experts." in name for name in trained)
    set_trainable(model, ["routers"])
    counts = count_trainable(model)
    assert counts["vision/routers"] == (2 * 4 * 32, 2 * 4 * 32)
    assert counts["vision/experts"][0] == counts["vision"][0] == 0
    assert set(counts) == {
        "vision",
        "vision/experts",
        "vision/routers",
        "projector",
        "language_model",
    }


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [("timm/test_efficientnet", "final", "EfficientNet"), ("timm/test_resnet", "final", "ResNet")],
)
def test_a_tower_without_transformer_blocks_is_refused(composed, name, layer, kind):
    model, _ = composed()
    model.vision = ImageTower(describe_tower(name, layer, image_size=64))
    with pytest.raises(ValueError, match=f"image tower {name}: a {kind} has no transformer blocks"):
        upcycle(model, tiny.moe_configs(("vision",)))
    assert moe_count(model) == 0


def test_blocks_out_of_range_are_refused(composed):
    model, _ = composed()
    config = MoEConfig(layers=(0, 2))
    with pytest.raises(ValueError, match=r"layers=\(0, 2\): the image tower .* has layers 0 to 1"):
        list(slots(model, "vision", config))


@pytest.mark.parametrize(
    ("name", "gated", "activation"),
    [
        ("ViT-L-14-336-quickgelu", False, "quick_gelu"),
        ("ViT-SO400M-16-SigLIP2-384", False, "gelu_pytorch_tanh"),
        ("ViT-B-16-SigLIP", False, "gelu"),
        ("timm/vit_base_patch16_clip_quickgelu_224", False, "quick_gelu"),
        ("timm/vit_giant_patch14_dinov2", True, "silu"),
        ("timm/eva02_tiny_patch14_224", True, "silu"),
        ("timm/beit_base_patch16_224", False, "gelu"),
    ],
)
def test_published_towers_become_experts(composed, name, gated, activation):
    model, _ = composed()
    with torch.device("meta"):
        config = describe_tower(name, -2, mean=tiny.MEAN, std=tiny.STD, quick_gelu="quick" in name)
        model.vision = ImageTower(config)
        upcycle(model, tiny.moe_configs(("vision",)))
    for layer in model.moe_layers()["vision"]:
        assert (layer.experts.gated, layer.experts.activation) == (gated, activation)
    assert len(model.moe_layers()["vision"]) == len(model.vision.blocks())
