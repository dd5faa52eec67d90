"""A training of adapters: what moves, what is logged, how it resumes, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_compete import load
from llava_compete.__main__ import main
from llava_compete.training.prepare import prepare
from tests.training import recipes
from tests.training.recipes import argv

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    return recipes.make_recipe(
        tmp_path,
        checkpoints["moe"],
        lora=LORA,
        max_steps=4,
        competition_rate=0.5,
        competition_max_layers=2,
        competition_warmup=1,
    )


def train(recipe: dict[str, Any], **changes: Any) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in recipes.train(recipe, **changes)]


def test_adapters_experts_routers_and_named_parts_move_and_nothing_else(
    recipe: dict[str, Any],
) -> None:
    losses = train(recipe)
    assert losses[-1] < losses[0]
    before = load_file(Path(recipe["checkpoint"]) / "model.safetensors")
    after = load_file(Path(recipe["output_dir"]) / "model.safetensors")
    for name, value in after.items():
        if ".lora_B." in name:
            assert value.abs().max() > 0, name
        elif ".lora_A." not in name:
            plain = before[name.replace(".base_layer", "")]
            trained = name.startswith("projector.") or ".experts." in name or ".router." in name
            assert torch.equal(value, plain) != trained, name


def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    whole = train(recipe, **saving)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    again = train(
        recipe,
        **saving,
        output_dir=str(tmp_path / "again"),
        resume=str(tmp_path / "run" / "checkpoint-2"),
    )
    assert again == whole
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


def test_a_trained_checkpoint_is_loaded_and_trained_on_without_saying_lora_again(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    train(recipe)
    values = {key: value for key, value in recipe.items() if key != "lora"}
    trainer, _ = prepare(
        argv({**values, "checkpoint": recipe["output_dir"], "output_dir": str(tmp_path / "more")})
    )
    assert trainer.model.config.lora == load(recipe["output_dir"])[0].config.lora
    moving = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert any(".lora_A." in name for name in moving)
    assert not any(".base_layer." in name for name in moving)


def test_adapters_have_a_learning_rate_of_their_own(recipe: dict[str, Any]) -> None:
    trainer, _ = prepare(argv(recipe, part_learning_rates={"lora": 0.5}))
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    assert {
        (".lora_" in names[id(parameter)], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    } == {(True, 0.5), (False, 1e-2)}


def test_a_training_in_4_bits_resumes_to_the_bit_and_leaves_an_ordinary_checkpoint(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    saving = {"save_strategy": "steps", "save_steps": 2, "lora": {**LORA, "quantize": "nf4"}}
    whole = train(recipe, **saving)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    plain = load_file(Path(recipe["checkpoint"]) / "model.safetensors")
    assert {name.replace(".base_layer", "") for name in weights if ".lora_" not in name} == {*plain}
    again = train(
        recipe,
        **saving,
        output_dir=str(tmp_path / "again"),
        resume=str(tmp_path / "run" / "checkpoint-2"),
    )
    assert again == whole
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name
    rounded = "language_model.model.layers.0.self_attn.q_proj.base_layer.weight"
    assert not torch.equal(weights[rounded], plain[rounded.replace(".base_layer", "")])
    main(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged")])
    assert load(tmp_path / "merged")[0].config.lora is None


def test_other_adapters_are_refused_on_resume(recipe: dict[str, Any], tmp_path: Path) -> None:
    train(recipe, save_strategy="steps", save_steps=2)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="lora"):
        prepare(
            argv(
                recipe,
                lora={**LORA, "alpha": 16},
                output_dir=str(tmp_path / "again"),
                resume=checkpoint,
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 4}}, "lora: unknown key 'rank'"),
        ({"lora": {"parts": ["projector"]}}, r"both name \['projector'\]|no dense linear map"),
        ({"trainable": ["language_model"]}, r"both name \['language_model'\]"),
    ],
)
def test_a_fault_of_lora_is_named_before_anything_is_written(
    recipe: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(argv(recipe, **changes))
    assert not Path(recipe["output_dir"]).exists()
