"""CompeteSMoE's layout, read: the same logits as a reference written from its description."""

import pytest
import torch
from torch.testing import assert_close

from llava_compete import LlavaCompeteForConditionalGeneration
from llava_compete.foreign.libmoe import import_libmoe, is_libmoe
from tests.foreign import libmoe

IMAGE_TOKEN_ID = libmoe.VOCABULARY - 1


@pytest.fixture(scope="module")
def reference():
    return libmoe.Reference()


def imported(reference, state=None, **given):
    given = {"top_k": libmoe.TOP_K, "num_heads": libmoe.HEADS, **given}
    state = reference.state_dict() if state is None else state
    return import_libmoe(libmoe.config_values(), state, image_token_id=IMAGE_TOKEN_ID, **given)


def model_of(result):
    model = LlavaCompeteForConditionalGeneration(result.config)
    model.load_state_dict(result.tensors)
    return model.eval()


def row(pictures):
    ids = torch.randint(2, 250, (20,), generator=torch.Generator().manual_seed(3))
    for picture in range(pictures):
        ids[2 + 8 * picture : 2 + 8 * picture + libmoe.SIDE**2] = IMAGE_TOKEN_ID
    return ids


@pytest.mark.parametrize("router", ["compete", "topk"])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_logits_equal_the_reference(reference, pictures, router):
    model, ids = model_of(imported(reference, router=router)), row(pictures)
    pixels = torch.randn(pictures, 3, libmoe.SIZE, libmoe.SIZE) if pictures else None
    theirs = reference.logits(ids, IMAGE_TOKEN_ID, pixels)
    with torch.no_grad():
        ours = model(ids[None], pixel_values=pixels).logits[0]
    print(f"\n{pictures} pictures: {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1f}")
    assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_features_at_both_scales_equal_the_reference(reference):
    model, pixels = model_of(imported(reference)), torch.randn(2, 3, libmoe.SIZE, libmoe.SIZE)
    assert model.config.vision.scales == (1, 3)
    with torch.no_grad():
        assert_close(model.vision(pixels), reference.features(pixels), atol=1e-5, rtol=1e-5)


def test_one_scale_is_read_from_the_projector():
    one = libmoe.Reference(scales=(1,))
    model, pixels = model_of(imported(one)), torch.randn(1, 3, libmoe.SIZE, libmoe.SIZE)
    assert model.config.vision.scales == (1,)
    with torch.no_grad():
        assert_close(model.vision(pixels), one.features(pixels), atol=1e-5, rtol=1e-5)


def test_every_key_is_used_or_dropped_for_a_reason(reference):
    result = imported(reference)
    report, keys = result.report, set(reference.state_dict())
    assert set(report.used) | set(report.dropped) == keys
    last = f"encoder.layers.{libmoe.BLOCKS - 1}."
    wanted = {key for key in keys if last in key or key.endswith(".prob_flips")}
    assert set(report.dropped) == wanted
    moe = result.config.moe_configs
    assert {(part, c.num_experts, c.top_k) for part, c in moe.items()} == {
        ("projector", libmoe.EXPERTS, libmoe.TOP_K),
        ("vision", libmoe.EXPERTS, libmoe.TOP_K),
    }


def test_experts_keep_their_numbers(reference):
    stacked = imported(reference).tensors["vision.trunk.blocks.0.mlp.experts.down_proj"]
    experts = reference.model.vision_tower.vision_model.encoder.layers[0].moelayer.experts
    for number, expert in enumerate(experts):
        assert torch.equal(stacked[number], expert.fc2.weight)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.vision_tower.vision_model.encoder.layers.1.moelayer.experts.2.fc1.bias", "needs p"),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", "needs parts"),
        ("model.mm_projector.moelayer.gate.weight", "1 missing: projector.router.gate.weight"),
        ("model.layers.1.mlp.down_proj.weight", "missing: language_model.model.layers.1.mlp.down"),
        ("model.vision_tower.vision_model.embeddings.patch_embedding.weight", "which CompeteSMoE"),
    ],
)
def test_a_key_that_is_gone_is_named(reference, key, message):
    state = reference.state_dict()
    del state[key]
    with pytest.raises(ValueError, match=message):
        imported(reference, state)


def test_a_key_nobody_knows_is_named(reference):
    state = {**reference.state_dict(), "model.mm_projector.moelayer.luna.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 unused: model\.mm_projector\.moelayer\.luna\.weight"):
        imported(reference, state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": None}, "config.json has no num_selected: give top_k"),
        ({"num_heads": None}, "mm_vision_tower='someone/a-siglip' is not one of .* give num_heads"),
        ({"num_heads": 5}, "num_heads=5 must divide the tower's width, 32"),
        ({"top_k": 5}, "top_k=5 must be between 1 and num_experts=4"),
    ],
)
def test_what_neither_weights_nor_config_say_is_asked_for(reference, given, message):
    with pytest.raises(ValueError, match=message):
        imported(reference, **given)


def test_the_layout_is_told_by_the_projectors_experts(reference):
    assert is_libmoe(reference.state_dict())
    assert not is_libmoe({"model.mm_projector.0.weight": 1, "lm_head.weight": 1})
