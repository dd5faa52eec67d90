"""Adapters: which maps have them, what they compute, how they are saved, merged and refused."""

import functools

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from eval.inference import Inference
from eval.model import LlavaCompete
from eval.task import Sample
from llava_compete import load, save, upcycle_model
from llava_compete.__main__ import main
from llava_compete.foreign.to_llava_hf import save_llava_hf
from llava_compete.lora import LoraSettings, add_lora, merge_lora, target_names
from llava_compete.tower import load_tower
from llava_compete.training.parts import count_trainable, set_trainable
from tests import tiny

SETTINGS = LoraSettings(r=4, alpha=6, dropout=0.0)


def logits(model, seed=0):
    """Of one picture and some text, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (1, 24), generator=generator)
    ids[0, 2 : 2 + tiny.NUM_PATCHES] = model.config.image_token_id
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=generator)
    with torch.no_grad():
        return model.eval()(ids, pixel_values=pixels).logits


def move_adapters(model, std=0.1):
    """As after some steps: B is no longer 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def lora_loop(model):
    """Every map with an adapter as one dense map, W + alpha / r * B A, element by element."""
    dense = {}
    for name, weight in model.state_dict().items():
        if name.endswith(".base_layer.weight"):
            at = name.removesuffix("base_layer.weight")
            a, b = (model.state_dict()[f"{at}lora_{which}.default.weight"] for which in "AB")
            total = weight.clone()
            for row in range(weight.shape[0]):
                for column in range(weight.shape[1]):
                    product = sum(b[row, i] * a[i, column] for i in range(SETTINGS.r))
                    total[row, column] += SETTINGS.alpha / SETTINGS.r * product
            dense[f"{at}weight"] = total
    return dense


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fresh_adapters_leave_the_output_as_it_was(dense, family):
    model, _ = dense(family)
    before = logits(model)
    add_lora(model, SETTINGS, seed=0)
    assert any(".lora_A." in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model), before)


def test_adapters_equal_the_loop(checkpoints):
    model, _ = load(checkpoints["moe"])
    plain, _ = load(checkpoints["moe"])
    add_lora(model, SETTINGS, seed=0)
    move_adapters(model)
    state = lora_loop(model)
    assert len(state) == 8  # q, k, v, o of two layers; the FFNs are experts
    plain.load_state_dict(state, strict=False)
    assert (logits(model) - logits(load(checkpoints["moe"])[0])).abs().max() > 0.1
    assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_with_adapters_is_the_model_to_the_bit(checkpoints, tmp_path):
    model, processor = load(checkpoints["moe"])
    add_lora(model, LoraSettings(r=4, alpha=6, parts=("language_model", "vision")), seed=0)
    move_adapters(model)
    save(model, processor, tmp_path / "out")
    loaded, _ = load(tmp_path / "out")
    assert loaded.config.lora == model.config.lora
    assert torch.equal(logits(loaded), logits(model))


def test_merged_adapters_compute_the_same_and_leave_an_ordinary_checkpoint(checkpoints, tmp_path):
    model, processor = load(checkpoints["moe"])
    names = set(model.state_dict())
    add_lora(model, SETTINGS, seed=0)
    move_adapters(model)
    save(model, processor, tmp_path / "lora")
    main(["merge", str(tmp_path / "lora"), "--output", str(tmp_path / "merged")])
    merged, _ = load(tmp_path / "merged")
    assert set(merged.state_dict()) == names
    assert merged.config.lora is None
    assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-5)
    state = merged.state_dict()
    for name, weight in lora_loop(model).items():
        assert_close(state[name], weight, atol=1e-6, rtol=1e-5)


def test_fresh_adapters_depend_on_the_seed_alone(dense):
    models = []
    for seed in (3, 3, 4):
        model, _ = dense()
        torch.randn(seed)
        before = torch.get_rng_state()
        add_lora(model, SETTINGS, seed)
        assert torch.equal(torch.get_rng_state(), before)
        models.append({n: p for n, p in model.named_parameters() if ".lora_A." in n})
    for name, first in models[0].items():
        assert torch.equal(first, models[1][name])
        assert not torch.equal(first, models[2][name])


def test_targets_are_linear_maps_that_are_called_and_no_expert_router_or_head(checkpoints):
    model, _ = load(checkpoints["moe"])
    every = target_names(model, LoraSettings(parts=("vision", "language_model")))
    last = {name.rpartition(".")[2] for name in every}
    assert last == {"q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"}
    for name in every:
        assert isinstance(model.get_submodule(name), nn.Linear)
    calls = set()
    for name in every:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.add(name))
    logits(model)
    assert calls == set(every)
    some = target_names(model, LoraSettings(targets=("q_proj", "v_proj")))
    assert len(some) == 4


def called_of(root, names, run):
    calls = set()
    for name in names:
        root.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.add(name))
    with torch.no_grad():
        run()
    return calls


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_target_of_a_language_model_is_called(dense, family):
    model, _ = dense(family)
    names = target_names(model, LoraSettings())
    assert called_of(model, names, lambda: logits(model)) == set(names)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("vit_base_patch16_siglip_224", set()),
        ("eva02_base_patch14_224", set()),
        ("eva_giant_patch14_224", {"qkv"}),  # takes its weight together with biases of its own
        ("beit_base_patch16_224", {"qkv"}),
    ],
)
def test_every_target_of_an_image_tower_is_called(dense, name, left_out):
    model, _ = dense()
    model.vision = timm.create_model(
        name,
        img_size=32,
        patch_size=16,
        embed_dim=48,
        depth=2,
        num_heads=4,
        num_classes=0,
        global_pool="",
    )
    names = target_names(model, LoraSettings(parts=("vision",)))
    run = functools.partial(model.vision.forward_features, torch.randn(1, 3, 32, 32))
    assert called_of(model, names, run) == set(names)
    blocks = {
        name.rpartition(".")[2]
        for name, module in model.vision.blocks.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert blocks - {name.rpartition(".")[2] for name in names} == left_out


def test_what_is_trained_beside_adapters_is_experts_routers_and_what_is_named(checkpoints):
    model, _ = load(checkpoints["moe"])
    add_lora(model, SETTINGS, seed=0)
    set_trainable(model, ["projector"])
    counts = count_trainable(model)
    whole = ["language_model/lora", "language_model/experts", "language_model/router"]
    for part, (trained, total) in counts.items():
        name = part.replace("routers", "router")
        assert trained == (total if name in whole or part.startswith("projector") else 0), part
    assert counts["language_model/lora"][0] == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16))


def test_a_part_is_trained_whole_or_by_adapters(checkpoints):
    model, _ = load(checkpoints["moe"])
    with pytest.raises(ValueError, match="trainable: 'lora', but the model has no adapters"):
        set_trainable(model, ["lora"])
    add_lora(model, SETTINGS, seed=0)
    with pytest.raises(ValueError, match=r"both name \['language_model'\]"):
        set_trainable(model, ["language_model"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 4}, "lora: unknown key 'rank'"),
        ({"r": 0}, "r=0 and alpha=256 must be at least 1"),
        ({"r": "many"}, "r.*many"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"parts": ["language"]}, "unknown part 'language'; did you mean language_model"),
        ({"quantize": "fp4"}, "quantize='fp4' must be nf4 or left out"),
        ({"parts": []}, "must not be empty"),
        ({"targets": []}, "must not be empty"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LoraSettings.of(values)


def test_maps_that_are_not_there_are_refused(dense, checkpoints):
    model, _ = dense()
    with pytest.raises(ValueError, match="is called 'q_prj'; did you mean q_proj"):
        add_lora(model, LoraSettings(targets=("q_prj",)), seed=0)
    model, _ = load(checkpoints["moe"])
    with pytest.raises(ValueError, match="projector have no dense linear map"):
        add_lora(model, LoraSettings(parts=("projector",)), seed=0)


def test_other_adapters_than_the_checkpoints_are_refused_and_the_same_are_kept(dense):
    model, _ = dense()
    add_lora(model, SETTINGS, seed=0)
    move_adapters(model)
    before = logits(model)
    add_lora(model, SETTINGS, seed=1)
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match=r"has adapters already, of .*: leave lora out"):
        add_lora(model, LoraSettings(r=8), seed=0)


def test_an_evaluation_answers_alike_before_and_after_a_merge(dense, tmp_path):
    model, processor = dense()
    add_lora(model, SETTINGS, seed=0)
    move_adapters(model)
    save(model, processor, tmp_path / "lora")
    merge_lora(model)
    save(model, processor, tmp_path / "merged")
    tiny.draw(1).save(tmp_path / "1.png")
    samples = [Sample("a", "What is this?", ("box",), (tmp_path / "1.png",))]
    loaded = [
        LlavaCompete.load(tmp_path / name, "float32", Inference()) for name in ("lora", "merged")
    ]
    texts = [[answer.text for answer in one.answers(samples, 8)] for one in loaded]
    assert texts[0] == texts[1]
    losses = [one.answer_losses(samples) for one in loaded]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_transformers_llava_has_no_place_for_adapters(dense, tmp_path):
    model, processor = dense()
    add_lora(model, SETTINGS, seed=0)
    with pytest.raises(ValueError, match=r"the model has adapters: .*llava-compete merge"):
        save_llava_hf(model, processor, tmp_path / "out")


def test_features_of_a_tower_with_adapters_are_not_cached(dense, tmp_path):
    model, processor = dense()
    add_lora(model, LoraSettings(r=4, parts=("vision",)), seed=0)
    save(model, processor, tmp_path / "out")
    with pytest.raises(ValueError, match=r"its image tower has adapters: .*llava-compete merge"):
        load_tower(tmp_path / "out")


def test_a_model_with_adapters_is_merged_before_it_is_upcycled(dense):
    model, _ = dense()
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(model)
    add_lora(model, SETTINGS, seed=0)
    with pytest.raises(ValueError, match=r"the model has adapters: .*llava-compete merge"):
        upcycle_model(model, tiny.moe_configs())
    assert merge_lora(model) == 14  # q, k, v, o, gate, up, down of two layers
    upcycle_model(model, tiny.moe_configs())
