"""Steps whose loss or gradient is not finite, in one process."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_compete.data import IGNORED
from llava_compete.training.args import TrainArgs
from llava_compete.training.prepare import prepare, run
from llava_compete.training.trainer import LlavaTrainer
from tests.training.recipes import argv, make_recipe
from tests.training.spoil import note_replayed_steps, spoil_backward, spoil_forward

STEPS = 6


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    return make_recipe(
        tmp_path,
        checkpoints["moe"],
        n=2 * STEPS,
        trainable=["projector", "language_model"],
        max_steps=STEPS,
        lr_scheduler_type="cosine",
        competition_rate=0.5,
        competition_max_layers=2,
        competition_warmup=0,
    )


def trainer_of(recipe: dict[str, Any], **changes: Any) -> LlavaTrainer:
    return prepare(argv(recipe, **changes))[0]


def records(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads((Path(recipe["output_dir"]) / "non_finite.json").read_text())


def losses(trainer: LlavaTrainer) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}


@pytest.fixture(autouse=True)
def replays(monkeypatch: pytest.MonkeyPatch) -> None:
    note_replayed_steps(monkeypatch)


DECODER = "language_model.model.layers"


@pytest.mark.parametrize("logging_steps", [1, 4])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_stop_ends_before_the_weights_are_touched_and_names_rows_term_and_layer(
    recipe: dict[str, Any], logging_steps: int, optimizer: str
) -> None:
    recipe |= {"logging_steps": logging_steps, "optim": optimizer}
    whole = trainer_of(recipe, output_dir=recipe["output_dir"] + "-2", max_steps=2)
    whole.args.lr_scheduler_type = "constant"
    trainer = trainer_of(recipe)
    trainer.args.lr_scheduler_type = "constant"
    spoil_forward(trainer, 3, f"{DECODER}.1.mlp.experts")
    run(whole, None)
    with pytest.raises(ValueError, match=r"step 3: language.*is not finite.*non_finite=skip"):
        run(trainer, None)
    for (name, value), other in zip(
        trainer.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=0, msg=name)
    (record,) = records(recipe)
    (batch,) = record["batches"]
    assert record["step"] == 3
    assert record["parameters"] == []
    assert batch["layer"] == f"{DECODER}.1.mlp.experts"
    assert batch["pass"] == "forward"
    assert "language" in batch["terms"]
    assert "loss" in batch["terms"]
    loader = trainer.get_train_dataloader()
    assert loader.batch_sampler is not None
    drawn = [trainer.train_dataset.row(i)["id"] for i in list(iter(loader.batch_sampler))[2]]
    assert [row["id"] for row in batch["rows"]] == drawn


def test_a_gradient_alone_is_found_with_its_layer(recipe: dict[str, Any]) -> None:
    trainer = trainer_of(recipe, gradient_accumulation_steps=2)
    spoil_backward(trainer, 2, f"{DECODER}.1.mlp")
    with pytest.raises(ValueError, match="step 2: the gradient is not finite, first in the back"):
        run(trainer, None)
    (record,) = records(recipe)
    assert len(record["batches"]) == 2
    for batch in record["batches"]:
        assert batch["terms"] == []
        assert batch["pass"] == "backward"
        # What lies before that layer: the norm whose output it takes.
        assert batch["layer"] == f"{DECODER}.1.post_attention_layernorm"


def test_a_weight_that_is_nan_is_named(recipe: dict[str, Any]) -> None:
    trainer = trainer_of(recipe)
    name = "projector.experts.down_proj"
    trainer.model.get_parameter(name).data.flatten()[7] = math.nan
    with pytest.raises(ValueError, match=f"{name} holds such a value"):
        run(trainer, None)
    assert records(recipe)[0]["parameters"] == [name]


def state(trainer: LlavaTrainer) -> dict[str, Tensor]:
    """Weights, router state, optimizer state and learning rates."""
    found = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.optimizer is not None
    for index, values in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{index}/{key}": torch.as_tensor(v).clone() for key, v in values.items()}
    for index, group in enumerate(trainer.optimizer.param_groups):
        found[f"rate/{index}"] = torch.tensor(group["lr"])
    return found


def states_after(trainer: LlavaTrainer, look: Callable[[int], bool]) -> dict[int, dict[str, Any]]:
    """The state at the begin of those steps (from 1) that ``look`` asks for."""
    from transformers import TrainerCallback

    found: dict[int, dict[str, Any]] = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state_: Any, control: Any, **_: Any) -> None:
            if look(state_.global_step + 1):
                found[state_.global_step + 1] = state(trainer)

    trainer.add_callback(Look())
    return found


@pytest.mark.parametrize("router", ["compete", "shared_v3", "acmoe", "expert_race"])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_a_skipped_step_leaves_everything_as_it_was(
    recipe: dict[str, Any], router: str, optimizer: str
) -> None:
    options = {"router_parts": ["language_model"], "router": router, "fresh_routers": True}
    trainer = trainer_of(
        recipe, **options, optim=optimizer, non_finite="skip", max_non_finite_share=0.02
    )
    spoil_forward(trainer, 3, f"{DECODER}.0.mlp")
    spoil_backward(trainer, 5, f"{DECODER}.1.mlp")
    found = states_after(trainer, lambda step: True)
    run(trainer, None)
    for before, after, moves in ((2, 3, True), (3, 4, False), (4, 5, True), (5, 6, False)):
        changed = (
            [
                name
                for name in found[after]
                if not found[before].get(name, torch.nan).equal(found[after][name])
            ]
            if not moves
            else []
        )
        assert not changed, changed
        if moves:
            assert not all(found[before][n].equal(found[after][n]) for n in found[before])
    assert [record["step"] for record in records(recipe)] == [3, 5]
    assert sorted(losses(trainer)) == [1, 2, 4, 6], "a step left out has no loss"
    assert all(map(math.isfinite, losses(trainer).values()))
    assert math.isfinite(
        json.loads((Path(recipe["output_dir"]) / "train_results.json").read_text())["train_loss"]
    )


def test_a_verdict_read_a_step_later_changes_nothing(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    trained = []
    for logging_steps in (1, 4):
        output = str(tmp_path / f"run-{logging_steps}")
        recipe |= {"logging_steps": logging_steps, "output_dir": output}
        trainer = trainer_of(recipe, non_finite="skip", max_non_finite_share=0.02)
        spoil_forward(trainer, 2, f"{DECODER}.0.mlp")
        run(trainer, None)
        trained.append((state(trainer), losses(trainer)))
    (each, each_loss), (later, later_loss) = trained
    for name, value in each.items():
        assert value.equal(later[name]), name
    mean = (each_loss[1] + each_loss[3] + each_loss[4]) / 3
    assert later_loss[4] == pytest.approx(mean, rel=1e-6)


def test_records_of_steps_that_are_done_again_are_there_once(recipe: dict[str, Any]) -> None:
    file = Path(recipe["output_dir"]) / "non_finite.json"
    trainer = trainer_of(recipe, non_finite="skip", max_non_finite_share=1.0)
    file.parent.mkdir(exist_ok=True)
    file.write_text('[{"step": 0}, {"step": 3}]')
    spoil_forward(trainer, 1, "language_model.model.layers.0")
    trainer.train()
    assert [record["step"] for record in records(recipe)] == [0, 1]


def test_more_than_the_share_ends_the_run(recipe: dict[str, Any]) -> None:
    trainer = trainer_of(recipe, non_finite="skip")
    spoil_forward(trainer, 2, f"{DECODER}.0.mlp")
    spoil_backward(trainer, 4, f"{DECODER}.1.mlp")
    with pytest.raises(ValueError, match=r"2 of 4 steps.*max_non_finite_share=0.01"):
        run(trainer, None)


def test_a_term_without_a_share_in_the_loss_counts_too(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(recipe)
    forward = trainer.model.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.terms["language_model/router_z"] = torch.tensor(math.inf)
        return outputs

    monkeypatch.setattr(trainer.model, "forward", spoilt)
    with pytest.raises(ValueError, match="step 1: language_model/router_z is not finite"):
        run(trainer, None)


def test_the_guard_moves_no_bit_of_a_sound_run(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llava_compete.training.finite import FiniteGuard

    guarded = trainer_of(recipe)
    run(guarded, None)
    monkeypatch.setattr(FiniteGuard, "watch", lambda self, inputs, loss, terms: loss)
    monkeypatch.setattr(FiniteGuard, "see_norm", lambda self, norm: None)
    plain = trainer_of(recipe, output_dir=str(tmp_path / "plain"))
    run(plain, None)
    assert losses(guarded) == losses(plain)
    for name, value in state(plain).items():
        assert value.equal(state(guarded)[name]), name
    assert not (Path(recipe["output_dir"]) / "non_finite.json").exists()


@pytest.mark.parametrize("batches", ["some", "all"])
def test_a_batch_without_an_answer_has_loss_0(recipe: dict[str, Any], batches: str) -> None:
    trainer = trainer_of(recipe, gradient_accumulation_steps=2, max_steps=2)
    collate, count = trainer.data_collator, 0

    def silent(samples: Any) -> dict[str, Any]:
        nonlocal count
        batch = collate(samples)
        if batches == "all" or count % 2:
            batch["labels"].fill_(IGNORED)
        count += 1
        return batch

    trainer.data_collator = silent
    before = state_of(trainer)
    run(trainer, None)
    values = losses(trainer)
    assert all(map(math.isfinite, values.values()))
    assert not (Path(recipe["output_dir"]) / "non_finite.json").exists()
    if batches == "all":
        assert set(values.values()) == {0.0}
        for name, value in trainer.model.state_dict().items():
            assert value.equal(before[name]), name
    else:
        assert min(values.values()) > 0


def state_of(trainer: LlavaTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"non_finite": "skipp"}, "non_finite='skipp' is not known.*skip"),
        ({"max_non_finite_share": 1.5}, "max_non_finite_share=1.5 must be between 0 and 1"),
        ({"fp16": True}, "fp16=true: its loss scaler.*use bf16"),
    ],
)
def test_an_impossible_policy_is_refused(
    changes: dict[str, Any], error: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=error):
        TrainArgs(output_dir=str(tmp_path), use_cpu=True, **changes)
