"""Two gloo processes of which one meets a fault: alike on both ranks, under every ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_compete.moe.upcycle import PARTS
from tests import tiny
from tests.training.finite_each import BACKWARD, FORWARD, LAYER, NONE_AT_ALL
from tests.training.launches import REPOSITORY, launch
from tests.training.recipes import argv, for_two_ranks

pytestmark = pytest.mark.slow

STEPS = 6
STAGES = ("zero1", "zero2", "zero3", "zero3_offload")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directories of all runs."""
    root = tmp_path_factory.mktemp("finite")
    checkpoint = tiny.make_checkpoint(root / "moe", parts=PARTS, perturbation=1.0)
    recipe = Path(*argv(for_two_ranks(root, checkpoint, STEPS)))
    configs = [str(REPOSITORY / "zero_configs" / f"{stage}.json") for stage in STAGES]
    for given in ([], configs):
        words = [str(recipe), str(root), *given]
        launch("tests.training.finite_each", words, processes=2, timeout=900)
    return root


def losses(output: Path) -> dict[int, float]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def records(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "non_finite.json").read_text())


@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_the_rank_the_rows_and_the_layer_are_named(stage: str, runs: Path) -> None:
    forward, backward = records(runs / f"{stage}-skip")
    assert (forward["step"], backward["step"]) == (FORWARD, BACKWARD)
    (batch,) = forward["batches"]
    assert batch["rank"] == 1
    assert batch["rows"] == [{"row": 2 * FORWARD - 1, "id": f"row-{2 * FORWARD - 1}"}]
    assert batch["layer"] == LAYER
    assert batch["pass"] == "forward"
    assert "language" in batch["terms"]
    (batch,) = backward["batches"]
    assert batch["rank"] == 1
    assert batch["terms"] == []
    assert batch["pass"] == "backward"
    assert batch["layer"] is not None


@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_skipping_gives_the_losses_of_data_parallel_training(stage: str, runs: Path) -> None:
    plain, sharded = losses(runs / "none-skip"), losses(runs / f"{stage}-skip")
    assert sorted(plain) == sorted(set(range(1, STEPS + 1)) - {FORWARD, BACKWARD})
    assert sharded == pytest.approx(plain, rel=1e-4)
    log = json.loads((runs / f"{stage}-skip" / "trainer_state.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    assert rates[FORWARD + 1] == pytest.approx(rates[FORWARD]), "the schedule went on"
    assert rates[FORWARD] < rates[FORWARD - 1]


@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_both_ranks_stop_alike(stage: str, runs: Path) -> None:
    messages = [
        (runs / f"{stage}-stop" / f"error-{rank}.txt").read_text().replace(f"{stage}-", "")
        for rank in (0, 1)
    ]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"step {FORWARD}: language")
    assert len(records(runs / f"{stage}-stop")) == 1


@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_a_rank_and_a_step_without_an_answer_are_legal(stage: str, runs: Path) -> None:
    plain, sharded = losses(runs / "none-silent"), losses(runs / f"{stage}-silent")
    assert sorted(plain) == list(range(1, STEPS + 1))
    assert sharded == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert plain[NONE_AT_ALL] == 0.0
    assert not (runs / f"{stage}-silent" / "non_finite.json").exists()
