"""Two gloo processes of which one meets a fault: alike on both ranks, under every ZeRO stage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_compete.moe.upcycle import PARTS
from tests import tiny
from tests.training.finite_each import BACKWARD, FORWARD, LAYER, NONE_AT_ALL
from tests.training.test_zero import free_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STEPS = 6
STAGES = ("zero1", "zero2", "zero3", "zero3_offload")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directories of all runs."""
    root = tmp_path_factory.mktemp("finite")
    checkpoint = tiny.make_checkpoint(root / "moe", parts=PARTS, perturbation=1.0)
    rows, images = tiny.write_rows(root, n=2 * STEPS, text_only=range(1, 2 * STEPS, 2))
    recipe = root / "recipe.yaml"
    recipe.write_text(
        f"""
        checkpoint: {checkpoint}
        trainable: [vision, projector, language_model]
        data_path: {rows}
        image_folder: {images}
        output_dir: {root / "unused"}
        per_device_train_batch_size: 1
        max_steps: {STEPS}
        learning_rate: 1e-2
        train_sampling_strategy: sequential
        competition_rate: 0.5
        competition_max_layers: 3
        competition_warmup: 1
        logging_steps: 1
        save_strategy: "no"
        use_cpu: true
        report_to: none
        """
    )
    configs = [str(REPOSITORY / "zero_configs" / f"{stage}.json") for stage in STAGES]
    for given in ([], configs):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        module = ["--master-port", str(free_port()), "-m", "tests.training.finite_each"]
        done = subprocess.run(
            [*launcher, *module, str(recipe), str(root), *given],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
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
