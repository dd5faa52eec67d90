"""One process, any router: what goes on from a checkpoint equals what was never cut."""

import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_compete.moe.routers import ROUTERS
from llava_compete.training.callbacks import CompetitionCallback
from llava_compete.training.prepare import prepare, run
from llava_compete.training.progress import FILE
from llava_compete.training.trainer import LlavaTrainer
from tests.training.recipes import argv, make_recipe

TIMES = {"step_seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
# Losses and expert loads need no state; these keep some from step to step.
STATEFUL = ("acmoe", "expert_race", "maskmoe", "shared_v3", "stablemoe")


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    """8 rows, 4 steps an epoch, saved at 3 between the log lines of 2 and 4."""
    return make_recipe(
        tmp_path,
        checkpoints["moe"],
        trainable=["projector", "language_model"],
        max_steps=6,
        lr_scheduler_type="cosine",
        competition_rate=0.4,
        competition_max_layers=3,
        competition_warmup=0.2,
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        trial_save=False,
    )


def train(recipe: dict[str, Any], output: Path, **changes: Any) -> LlavaTrainer:
    trainer, resume_from = prepare(argv(recipe, output_dir=str(output), **changes))
    torch.manual_seed(99)
    run(trainer, resume_from)
    return trainer


def cut(run_dir: Path, step: int, again: Path) -> Path:
    """A directory with the checkpoint of ``step`` alone."""
    shutil.copytree(run_dir / f"checkpoint-{step}", again / f"checkpoint-{step}")
    return again


def logged(output: Path) -> list[dict[str, float]]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in history]


def assert_equal(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert weights.keys() == expected.keys()
    assert not [name for name in weights if not torch.equal(weights[name], expected[name])]


def test_every_router_with_state_is_tried() -> None:
    sources = {
        name: inspect.getsource(sys.modules[cls.__module__]) for name, cls in ROUTERS.items()
    }
    assert {n for n, source in sources.items() if "register_buffer" in source} == set(STATEFUL)


@pytest.mark.parametrize("router", [*STATEFUL, "compete"])
def test_the_state_of_a_router_goes_on(recipe: dict[str, Any], tmp_path: Path, router: str) -> None:
    parts = {"router_parts": ["language_model"]}
    recipe |= {"router": router, "fresh_routers": True, **parts}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole)
    train(recipe, cut(whole, 3, again), resume="auto")
    assert_equal(again, whole)
    before, after = (
        load_file(whole / f"checkpoint-{step}" / "model.safetensors") for step in (3, 6)
    )
    states = [name for name in before if ".state_" in name]
    assert bool(states) == (router in STATEFUL)
    if router in ("expert_race", "shared_v3"):
        assert any(not torch.equal(before[name], after[name]) for name in states)


@pytest.mark.parametrize("step", [2, 4, 5])
def test_any_step_may_be_the_last_before_the_cut(
    recipe: dict[str, Any], tmp_path: Path, step: int
) -> None:
    """On a log line, at an epoch's end, behind one."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole, save_steps=1)
    train(recipe, cut(whole, step, again), save_steps=1, resume="auto")
    assert_equal(again, whole)


def test_a_run_that_was_cut_behind_its_last_step_takes_no_other(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Step 6 is in the middle of the second epoch."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole)
    trainer = train(recipe, cut(whole, 6, again), resume="auto")
    assert trainer.state.global_step == 6
    assert_equal(again, whole)


def test_a_log_line_at_the_epochs_end_goes_on_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"logging_strategy": "epoch", "gradient_accumulation_steps": 3}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole)
    assert [entry["step"] for entry in logged(whole)] == [2, 4, 6, 6]
    train(recipe, cut(whole, 3, again), resume="auto")
    assert_equal(again, whole)


@pytest.fixture
def competing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[bool, ...]]]:
    """What the schedule decided, by step."""
    seen: dict[int, tuple[bool, ...]] = {}
    begin = CompetitionCallback.on_step_begin

    def watched(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        begin(self, args, state, control, **more)
        seen[state.global_step] = tuple(layer.competing for layer in self.model.competitors())

    monkeypatch.setattr(CompetitionCallback, "on_step_begin", watched)
    yield seen
    seen.clear()


def test_a_longer_run_keeps_the_decisions_and_the_rows_of_the_shorter(
    recipe: dict[str, Any], tmp_path: Path, competing: dict[int, tuple[bool, ...]]
) -> None:
    """A warm-up of 0.4 of 6 steps is 2 steps, and stays 2 of 20; rates follow the new length."""
    recipe |= {"competition_warmup": 0.4, "competition_rate": 0.9, "logging_steps": 1}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole)
    first = dict(competing)
    assert not any(first[0] + first[1])
    assert any(first[2] + first[3])
    competing.clear()
    trainer = train(recipe, cut(whole, 3, again), resume="auto", max_steps=20)
    assert trainer.state.global_step == 20
    assert [competing[step] for step in (3, 4, 5)] == [first[step] for step in (3, 4, 5)]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history[3:20]]
    assert rates[0] > 8e-3, "step 4 of 20 has the rate of step 4 of 6"
    assert rates == sorted(rates, reverse=True)
    filled = [entry["data/filled"] for entry in logged(again)[:6]]
    assert filled == [entry["data/filled"] for entry in logged(whole)[:6]]


def test_sums_of_other_ranks_come_together_in_the_next_log_line(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, whole)
    checkpoint = cut(whole, 3, again) / "checkpoint-3"
    mine = json.loads((checkpoint / FILE.format(0)).read_text())
    assert mine["last_log"] == 2
    other = {**mine, "loss": mine["loss"] + 2.0}
    other["seen"] = {name: [[v + 1 for v in vs], ws] for name, (vs, ws) in mine["seen"].items()}
    (checkpoint / FILE.format(1)).write_text(json.dumps(other))
    train(recipe, again, resume=str(checkpoint))
    line, expected = (
        next(entry for entry in logged(folder) if entry["step"] == 4) for folder in (again, whole)
    )
    assert line["loss"] == pytest.approx(expected["loss"] + 0.5)  # a step of two, the mean of 0, 2
    # Two values of step 3, one of them larger by 1, and one of step 4.
    third = mine["seen"]["language"][0][0]
    fourth = 2 * expected["language"] - third
    assert line["language"] == pytest.approx((2 * third + 1 + fourth) / 3, rel=1e-5)
