"""The trainer in one process: what is trained, at which rate, what is logged, and resume."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_compete import load
from llava_compete.training.callbacks import build_schedule
from llava_compete.training.dry_run import describe
from llava_compete.training.parts import count_trainable, set_trainable
from llava_compete.training.prepare import prepare
from llava_compete.training.wandb_account import use_wandb_offline_without_account
from tests import tiny
from tests.training.recipes import argv, make_recipe, train


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    return make_recipe(
        tmp_path,
        checkpoints["moe"],
        trainable=["projector", "language_model"],
        max_steps=4,
        learning_rate=1e-3,
        competition_rate=0.5,
        competition_max_layers=2,
        competition_warmup=1,
    )


def test_every_step_logs_each_loss_the_load_and_on_competing_steps_the_agreement(
    recipe: dict[str, Any],
) -> None:
    log = train(recipe)
    assert len(log) == 4
    for entry in log:
        for part in ("language_model", "projector"):
            load_E = [entry[f"{part}/load/{expert}"] for expert in range(4)]
            assert sum(load_E) == pytest.approx(1)
            competing = entry[f"{part}/competing_layers"]
            layers = 2 if part == "language_model" else 1
            assert (f"{part}/agreement" in entry) == (competing > 0)
            assert (f"{part}/distillation" in entry) == (competing > 0)
            assert (f"{part}/router_z" in entry) == (competing < layers)
        assert math.isfinite(entry["loss"])
    assert log[0]["language_model/competing_layers"] == 0, "a warm-up step competed"
    assert any(entry["language_model/competing_layers"] for entry in log)


def test_the_logged_losses_add_up_to_the_minimised_one(recipe: dict[str, Any]) -> None:
    weights = load(recipe["checkpoint"])[0].config.moe_configs
    for entry in train(recipe):
        total = entry["language"]
        for part, config in weights.items():
            for name, weight in config.loss_weights.items():
                total += weight * entry.get(f"{part}/{name}", 0.0)
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_only_the_named_parts_change(recipe: dict[str, Any]) -> None:
    before = load(recipe["checkpoint"])[0].state_dict()
    train(recipe, trainable=["routers", "projector"])
    after = load(recipe["output_dir"])[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".router." in name or name.startswith("projector") for name in changed)
    assert any("language_model" in name for name in changed)


def test_the_router_alone_learns_from_the_router_losses(recipe: dict[str, Any]) -> None:
    changes = {"trainable": ["routers"], "learning_rate": 0.1}
    loss_weights = {"balance": 1.0, "distillation": 100.0}
    log = train(recipe, **changes, loss_weights=loss_weights, max_steps=30)
    first = [
        entry["language_model/balance"] for entry in log[:10] if "language_model/balance" in entry
    ]
    last = [
        entry["language_model/balance"] for entry in log[-10:] if "language_model/balance" in entry
    ]
    assert sum(last) / len(last) < sum(first) / len(first)


def test_each_part_has_its_learning_rate_and_norms_no_decay(recipe: dict[str, Any]) -> None:
    rates = {"projector": 0.5, "routers": 0.25}
    trainer, _ = prepare(argv(recipe, part_learning_rates=rates, weight_decay=0.1))
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            routers, projector = ".router." in name, name.startswith("projector")
            expected = 0.25 if routers else 0.5 if projector else 1e-3
            assert group["lr"] == expected, name
            assert (group["weight_decay"] == 0) == ("norm" in name or "bias" in name), name
            seen += 1
    assert seen == sum(parameter.requires_grad for parameter in trainer.model.parameters())


def test_two_micro_batches_train_as_one_batch_of_both(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    # Rows 0 and 3 are of one length and so have equal shares.
    rows = [tiny.make_row(index) for index in (0, 3, 6, 9)]
    for index in (0, 3, 6, 9):
        tiny.draw(index).save(Path(recipe["image_folder"]) / f"{index}.png")
    Path(recipe["data_path"]).write_text(json.dumps(rows))
    recipe |= {"train_sampling_strategy": "sequential", "max_steps": 3}
    one = train(recipe, per_device_train_batch_size=2, output_dir=str(tmp_path / "one"))
    two = train(
        recipe,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        output_dir=str(tmp_path / "two"),
    )
    assert [e["language_model/competing_layers"] for e in one] == [
        e["language_model/competing_layers"] for e in two
    ]
    assert [e["language"] for e in two] == pytest.approx([e["language"] for e in one], rel=1e-3)


@pytest.mark.parametrize("warmup", [0, 1])
def test_activation_checkpointing_changes_no_bit(
    recipe: dict[str, Any], tmp_path: Path, warmup: int
) -> None:
    recipe |= {"competition_warmup": warmup}
    plain = train(recipe, output_dir=str(tmp_path / "plain"))
    again = train(recipe, output_dir=str(tmp_path / "again"), activation_checkpointing=True)
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in plain]
    assert [entry["grad_norm"] for entry in again] == [entry["grad_norm"] for entry in plain]


@pytest.mark.parametrize(
    "change",
    [
        {"competition_memory": 0.01},
        {"competition_memory": 0.01, "activation_checkpointing": True},
        {"compile_experts": True},
    ],
    ids=str,
)
def test_how_the_experts_compute_changes_the_rounding_alone(
    recipe: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = train(recipe, output_dir=str(tmp_path / "plain"))
    again = train(recipe, output_dir=str(tmp_path / "again"), **change)
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in again] == pytest.approx([e[key] for e in plain], rel=1e-4)


def test_experts_are_tuned_as_the_recipe_says(recipe: dict[str, Any]) -> None:
    trainer, _ = prepare(argv(recipe, competition_memory=1.5, compile_experts=True))
    layers = [layer for part in trainer.model.moe_layers().values() for layer in part]
    assert {layer.experts.competition_budget for layer in layers} == {3 * 2**19}
    assert all(layer.experts.elementwise.compiled for layer in layers)


def test_experts_are_not_compiled_without_a_compiler(recipe: dict[str, Any]) -> None:
    # Undone by monkeypatch the setting would be gone, and with it all compiling after this test.
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match="compile_experts=true: there is no C"),
    ):
        prepare(argv(recipe, compile_experts=True))


def test_re_entrant_checkpointing_is_refused(recipe: dict[str, Any]) -> None:
    trainer, _ = prepare(
        argv(
            recipe,
            activation_checkpointing=True,
            activation_checkpointing_kwargs={"use_reentrant": True},
        )
    )
    with pytest.raises(RuntimeError, match="re-entrant activation checkpointing"):
        trainer.train()


def test_a_resumed_run_keeps_the_schedule_and_ends_at_the_last_step(recipe: dict[str, Any]) -> None:
    whole = train(recipe, save_strategy="steps", save_steps=2)
    (Path(recipe["output_dir"]) / "checkpoint-4" / "trainer_state.json").unlink()
    again = train(recipe, save_strategy="steps", save_steps=2, resume="auto")
    names = ["step", "loss", "language_model/competing_layers", "projector/competing_layers"]
    assert [[e[n] for n in names] for e in again] == [[e[n] for n in names] for e in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ["projecter"]}, "unknown part 'projecter'; did you mean projector"),
        ({"part_learning_rates": {"visoin": 1.0}}, "unknown part 'visoin'; did you mean vision"),
        ({"competition_rate": 0.9}, r"rate=0.9 of 3 layers needs 2.7 .* max_layers=2"),
        ({"router": "topp"}, "router='topp' is not known; did you mean topk"),
        ({"loss_weights": {"balanse": 1.0}}, "balanse"),
        ({"data_path": "nowhere.json"}, "data file nowhere.json does not exist"),
        ({"checkpoint": "nowhere"}, "checkpoint nowhere is not a directory"),
        ({"save_on_each_node": True}, "all ranks share output_dir"),
        ({"ignore_data_skip": True}, "a resumed run would draw other rows"),
        ({"competition_memory": 0}, "competition_memory=0.0 must be above 0"),
        ({"auto_find_batch_size": True}, "a step would have other rows than the recipe says"),
        ({"save_only_model": True, "resume": "auto"}, "nothing to resume from"),
    ],
)
def test_a_fault_of_the_recipe_is_named_before_anything_is_written(
    recipe: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(argv(recipe, **changes))
    assert not Path(recipe["output_dir"]).exists()


@pytest.mark.parametrize("changes", [{"router": "topk"}, {"trainable": ["experts"]}])
def test_a_dense_checkpoint_where_experts_are_asked_for_is_refused(
    recipe: dict[str, Any], checkpoints: dict[str, Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="dense"):
        prepare(argv(recipe, checkpoint=str(checkpoints["dense"]), **changes))


def test_a_non_empty_output_directory_is_refused(recipe: dict[str, Any]) -> None:
    output = Path(recipe["output_dir"])
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not empty"):
        prepare(argv(recipe))
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_a_dry_run_shows_the_answers_shapes_and_parameters_and_writes_nothing(
    recipe: dict[str, Any],
) -> None:
    trainer, _ = prepare(argv(recipe, dry_run=True))
    text = describe(trainer)
    assert "[[Box 0.<|im_end|>]]" in text
    assert f"<image> x {tiny.NUM_PATCHES}" in text
    assert "(2, 3, 16, 16)" in text or "(1, 3, 16, 16)" in text
    assert "MoE layers: 2 in language_model, 1 in projector" in text
    assert not list(Path(recipe["output_dir"]).iterdir())


def test_counts_of_trainable_parameters_add_up(checkpoints: dict[str, Path]) -> None:
    model, _ = load(checkpoints["moe"])
    set_trainable(model, ["experts"])
    counts = count_trainable(model)
    assert sum(total for _, total in counts.values()) == model.num_parameters()
    assert all((trained > 0) == ("experts" in part) for part, (trained, _) in counts.items())


def test_plain_smoe_neither_competes_nor_says_so(recipe: dict[str, Any]) -> None:
    log = train(recipe, router="topk")
    assert all(entry["language_model/competing_layers"] == 0 for entry in log)
    assert not any("agreement" in name for entry in log for name in entry)
    assert load(recipe["output_dir"])[0].config.moe_configs["projector"].router == "topk"


def test_the_warm_up_is_a_share_of_the_steps_below_one_and_steps_from_one(
    recipe: dict[str, Any],
) -> None:
    trainer, _ = prepare(argv(recipe))
    for warmup, steps in ((0.25, 25), (7, 7)):
        trainer.args.competition_warmup = warmup
        assert build_schedule(trainer.model, trainer.args, 100).warmup_steps == steps


def test_a_dry_run_counts_the_steps_of_the_real_run(recipe: dict[str, Any]) -> None:
    recipe |= {"max_steps": -1, "num_train_epochs": 1.5, "gradient_accumulation_steps": 3}
    trainer, _ = prepare(argv(recipe))
    said = re.search(r"(\d+) steps, the first", describe(trainer))
    trainer.train()
    assert said is not None
    assert int(said[1]) == trainer.state.max_steps


def test_wandb_goes_offline_without_an_account_and_not_with_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    use_wandb_offline_without_account()
    assert os.environ.pop("WANDB_MODE") == "offline"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    use_wandb_offline_without_account()
    assert "WANDB_MODE" not in os.environ
    netrc.write_text("machine\n")
    use_wandb_offline_without_account()
    assert os.environ.pop("WANDB_MODE") == "offline"


@pytest.mark.slow
def test_a_wandb_run_is_written_to_disk_without_an_account(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(recipe, report_to="wandb", max_steps=1)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
