"""compose, upcycle, save and load: what is written is what comes back, or an error says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
)

from llava_compete import (
    ROUTERS,
    LlavaCompeteForConditionalGeneration,
    RoutingChange,
    compose,
    load,
    save,
)
from llava_compete.checkpoint import count_parameters, new_directory, read_config
from llava_compete.processor import IMAGE_TOKEN
from tests import tiny

ROOT = Path(__file__).parents[1]
kinds = pytest.mark.parametrize("kind", ["dense", "moe"])


def logits(model, processor):
    batch = tiny.make_batch(processor, range(3), text_only={1})
    del batch["labels"]
    with torch.no_grad():
        return model.eval()(**batch).logits


def assert_same_weights(got, wanted):
    got, wanted = got.state_dict(), wanted.state_dict()
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


@pytest.fixture
def broken(checkpoints, tmp_path):
    """A copy of the checkpoint with experts that a test may spoil."""
    return Path(shutil.copytree(checkpoints["moe"], tmp_path / "broken"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("with_experts", [False, True], ids=["dense", "moe"])
def test_a_saved_model_comes_back_bit_by_bit(dense, moe, tmp_path, family, with_experts):
    model, processor = moe(family) if with_experts else dense(family)
    save(model, processor, tmp_path / "saved")
    loaded, loaded_processor = load(tmp_path / "saved")
    assert_same_weights(loaded, model)
    assert torch.equal(logits(loaded, loaded_processor), logits(model, processor))
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert type(auto) is LlavaCompeteForConditionalGeneration
    assert_same_weights(auto, model)
    assert auto.config.moe_configs == model.config.moe_configs
    assert auto.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_tied_embeddings_are_written_once_and_tied_again(checkpoints):
    names = list(load_file(checkpoints["moe"] / "model.safetensors"))
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 1
    model, _ = load(checkpoints["moe"])
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert head is embeddings


@kinds
def test_a_second_save_writes_the_same_files(checkpoints, tmp_path, kind):
    model, processor = load(checkpoints[kind])
    save(model, processor, tmp_path / "again")
    names = sorted(path.name for path in checkpoints[kind].iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in ("config.json", "chat_template.jinja", "processor_config.json"):
        assert (tmp_path / "again" / name).read_text() == (checkpoints[kind] / name).read_text()
    for name, value in load_file(checkpoints[kind] / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[name], value)


def test_a_fresh_process_that_never_heard_of_the_tower_loads_it_alike(checkpoints, tmp_path):
    code = """
import sys, torch
torch.set_num_threads(1)
import open_clip
assert "tiny-vit" not in open_clip.list_models()
from llava_compete import load
from tests.tiny import make_batch
for path, output in zip(sys.argv[1::2], sys.argv[2::2]):
    model, processor = load(path)
    batch = make_batch(processor, range(3), text_only={1})
    del batch["labels"]
    with torch.no_grad():
        torch.save(model(**batch).logits, output)
"""
    outputs = {kind: str(tmp_path / f"{kind}.pt") for kind in checkpoints}
    arguments = [str(word) for kind in checkpoints for word in (checkpoints[kind], outputs[kind])]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, timeout=120)
    for kind, path in checkpoints.items():
        assert torch.equal(torch.load(outputs[kind], weights_only=True), logits(*load(path))), kind


def test_a_checkpoint_in_shards_loads_alike_and_a_missing_shard_is_named(checkpoints, tmp_path):
    model, processor = load(checkpoints["moe"])
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    processor.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert_same_weights(load(tmp_path)[0], model)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"is incomplete: it has no {shards[1].name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_a_missing_file_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint {broken} is incomplete: it has no {name}"):
        load(broken)


def test_something_that_is_no_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"checkpoint {tmp_path / 'none'} is not a directory"):
        load(tmp_path / "none")


def test_a_checkpoint_of_another_kind_is_refused_with_its_kind(tmp_path):
    folder = tiny.make_language_model(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"holds a 'llama' model, not 'llava_compete'.*compose"):
        load(folder)


def test_a_tensor_too_few_and_one_too_many_are_named(broken):
    state = load_file(broken / "model.safetensors")
    gate = "projector.router.gate.weight"
    state["stranger"] = torch.zeros(2)
    del state[gate]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load(broken)
    assert f"'missing_keys': ['{gate}']" in str(error.value)
    assert "'unexpected_keys': ['stranger']" in str(error.value)


@pytest.mark.parametrize(
    "change", [{"router": "topk"}, {"loss_weights": {"balance": 0.0}}, {"fresh": True}]
)
def test_routers_of_a_dense_checkpoint_cannot_be_changed(checkpoints, change):
    with pytest.raises(
        ValueError, match=r"is dense: another routing needs experts; `llava-compete upcycle`"
    ):
        load(checkpoints["dense"], routing=RoutingChange(**change))


def test_router_and_loss_weights_can_be_replaced_in_loading_and_nothing_else_moves(checkpoints):
    plain = read_config(checkpoints["moe"]).moe_configs
    model, _ = load(
        checkpoints["moe"],
        routing=RoutingChange(router="topk", loss_weights={"balance": 0.5}),
    )
    for part, config in model.config.moe_configs.items():
        assert config.router == "topk"
        assert config.loss_weights == {**ROUTERS["topk"].loss_weights, "balance": 0.5}
        assert config.num_experts == plain[part].num_experts
        assert type(model.moe_layers()[part][0].router).__name__ == "TopKRouter"
    assert_same_weights(model, load(checkpoints["moe"])[0])
    assert read_config(checkpoints["moe"]).moe_configs == plain


def test_an_unknown_router_or_loss_is_refused_in_loading(checkpoints):
    with pytest.raises(ValueError, match=r"router='topkk' is not known.*topk"):
        load(checkpoints["moe"], routing=RoutingChange(router="topkk"))
    with pytest.raises(ValueError, match=r"loss_weights names \['z'\]"):
        load(checkpoints["moe"], routing=RoutingChange(loss_weights={"z": 1.0}))


def test_another_routers_weights_are_refused_unless_it_may_begin_anew(checkpoints):
    change = RoutingChange(router="cosine")
    with pytest.raises(ValueError, match=r"weights of another router than cosine.*fresh_routers"):
        load(checkpoints["moe"], routing=change)


@pytest.mark.parametrize("router", ["topk", "cosine"])
def test_fresh_routers_begin_from_their_seed_and_experts_stay(checkpoints, tmp_path, router):
    plain = load(checkpoints["moe"])[0]
    with torch.no_grad():  # of a trained model
        for layers in plain.moe_layers().values():
            for layer in layers:
                layer.router.gate.weight.add_(1.0)
    save(plain, load(checkpoints["moe"])[1], tmp_path / "trained")
    change = RoutingChange(router=router, seed=7, fresh=True, parts=("language_model",))
    fresh, processor = load(tmp_path / "trained", routing=change)
    for index, layer in enumerate(fresh.moe_layers()["language_model"]):
        begun = {name: value.clone() for name, value in layer.router.state_dict().items()}
        layer.router.reset_parameters()
        for name, value in layer.router.state_dict().items():
            assert torch.equal(value, begun[name])
        before = plain.moe_layers()["language_model"][index].experts
        for name, value in layer.experts.state_dict().items():
            assert torch.equal(value, before.state_dict()[name])
    kept = fresh.moe_layers()["projector"][0].router.gate.weight
    assert torch.equal(kept, plain.moe_layers()["projector"][0].router.gate.weight)
    save(fresh, processor, tmp_path / "saved")
    again, _ = load(tmp_path / "saved")
    assert_same_weights(again, fresh)


@kinds
def test_a_model_loads_in_the_asked_dtype_and_in_evaluation_mode(checkpoints, kind):
    model, _ = load(checkpoints[kind], dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert {parameter.dtype for parameter in load(checkpoints[kind])[0].parameters()} == {
        torch.float32
    }


def test_an_output_that_is_not_empty_is_refused_and_left_alone(checkpoints, tmp_path):
    model, processor = load(checkpoints["dense"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=f"output {tmp_path / 'out'} exists and is not empty"):
        save(model, processor, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="exists and is not empty"):
        save(model, processor, tmp_path / "out" / "mine.txt")


def test_an_empty_output_directory_is_filled(checkpoints, tmp_path):
    (tmp_path / "out").mkdir()
    save(*load(checkpoints["dense"]), tmp_path / "out")
    load(tmp_path / "out")


def test_an_interrupted_save_leaves_no_directory_and_can_be_repeated(tmp_path):
    def fill(fail):
        with new_directory(tmp_path / "out") as partial:
            (partial / "half").write_text("x")
            if fail:
                raise OSError("disk full")
            (partial / "rest").write_text("y")

    with pytest.raises(OSError, match="disk full"):
        fill(fail=True)
    assert not (tmp_path / "out").exists()
    fill(fail=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["half", "rest"]


@pytest.fixture
def parts(tmp_path):
    """Arguments of compose."""
    language = tiny.make_language_model(tmp_path / "lm")
    vision, weights = tiny.make_tower(tmp_path / "tower")
    return str(language), vision, str(weights)


def test_compose_keeps_the_weights_of_both_parts_and_makes_room_for_the_image_token(parts):
    model, processor = compose(*parts)
    source = AutoModelForCausalLM.from_pretrained(parts[0]).state_dict()
    for name, value in model.language_model.state_dict().items():
        old = source[name]
        assert torch.equal(value[: len(old)] if value.shape != old.shape else value, old), name
    tower = load_file(parts[2])
    for name, value in model.vision.trunk.state_dict().items():
        assert torch.equal(value, tower[f"visual.{name}"]), name
    rows = model.get_input_embeddings().num_embeddings
    assert rows == len(processor.tokenizer) == len(source["model.embed_tokens.weight"]) + 1
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert model.config.image_token_id == image_token == rows - 1
    assert model.config.text_config.vocab_size == rows


def test_compose_is_a_function_of_its_seed_whatever_was_drawn_before(parts):
    first, _ = compose(*parts, seed=0)
    torch.manual_seed(12345)
    again, _ = compose(*parts, seed=0)
    other, _ = compose(*parts, seed=1)
    assert_same_weights(again, first)
    assert not torch.equal(other.projector.linear_1.weight, first.projector.linear_1.weight)


def test_compose_stops_generation_at_the_end_of_a_turn(parts):
    model, processor = compose(*parts)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == end
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_compose_in_bfloat16_gives_one_dtype(parts):
    model, _ = compose(*parts, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_calibration_pictures_give_the_projector_the_spread_of_the_embeddings(parts):
    pictures = [tiny.draw(index) for index in range(6)]
    model, processor = compose(*parts, calibration_images=pictures)
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        image_ND = model.projector(model.vision(pixels)).flatten(0, 1)
    wanted = model.get_input_embeddings().weight.std()
    assert_close(image_ND.std(dim=0).mean(), wanted.detach(), rtol=0.02, atol=0)
    uncalibrated = compose(*parts)[0].projector
    assert not torch.equal(model.projector.linear_1.weight, uncalibrated.linear_1.weight)


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
def test_a_composed_model_of_either_projector_survives_saving(parts, tmp_path, projector):
    model, processor = compose(*parts, projector=projector)
    save(model, processor, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["projector"] == projector
    assert_same_weights(load(tmp_path / "out")[0], model)


def test_a_language_model_without_decoder_layers_in_their_place_is_refused(parts, tmp_path):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny.make_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"is a GPT2LMHeadModel; supported are .*model.layers"):
        compose(str(tmp_path / "gpt2"), *parts[1:])


def test_active_parameters_count_k_of_e_experts(moe):
    model, _ = moe(num_experts=8, top_k=2)
    counted = count_parameters(model)
    experts = sum(
        parameter.numel()
        for layers in model.moe_layers().values()
        for layer in layers
        for parameter in layer.experts.parameters()
    )
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.active == counted.total - experts * 6 // 8


def test_the_saved_processor_is_found_by_transformers(checkpoints):
    processor = AutoProcessor.from_pretrained(checkpoints["dense"])
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.image_token == IMAGE_TOKEN
