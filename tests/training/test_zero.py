"""Two gloo processes: every ZeRO stage gives the losses of plain data-parallel training."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from llava_compete.moe.upcycle import PARTS
from tests import tiny

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STEPS = 6


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train(
    launcher: list[str], recipe: Path, output: Path, *flags: str, threads: int = 1
) -> list[dict[str, float]]:
    """Run the trainer as a user does; its log, step by step."""
    command = [*launcher, "llava_compete", "train", str(recipe), "--output_dir", str(output)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [*command, *flags],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def torchrun() -> list[str]:
    module = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*module, "--master-port", str(free_port()), "-m"]


def shapes(checkpoint: Path) -> dict[str, list[int]]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of experts that differ, competing steps, and of every two rows one without picture.

    Rows are dealt to the ranks in turn, so rank 1 sees text alone and routes to other experts.
    """
    root = tmp_path_factory.mktemp("zero")
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
    return recipe


@pytest.fixture(scope="module")
def data_parallel(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return train(torchrun(), recipe, tmp_path_factory.mktemp("ddp") / "run")


def test_the_run_has_what_can_go_wrong(data_parallel: list[dict[str, float]]) -> None:
    for part in ("language_model", "vision"):
        competing = [entry[f"{part}/competing_layers"] for entry in data_parallel]
        assert competing[0] == 0
        assert max(competing) > 0
        assert min(competing[1:]) == 0 or len(set(competing)) > 1
    assert data_parallel[-1]["loss"] < data_parallel[0]["loss"]


@pytest.mark.parametrize(
    ("stage", "checkpointing"),
    [
        ("zero1", "false"),
        ("zero2", "false"),
        ("zero3", "false"),
        ("zero3", "true"),
        ("zero3_offload", "false"),
    ],
)
def test_zero_gives_the_losses_of_data_parallel_training(
    stage: str,
    checkpointing: str,
    recipe: Path,
    data_parallel: list[dict[str, float]],
    tmp_path: Path,
) -> None:
    config = str(REPOSITORY / "zero_configs" / f"{stage}.json")
    flags = ["--deepspeed", config, "--activation_checkpointing", checkpointing]
    log = train(torchrun(), recipe, tmp_path / "run", *flags)
    print(f"\n{'step':>4} {'data-parallel':>14} {stage:>14}")
    for plain, sharded in zip(data_parallel, log, strict=True):
        print(f"{plain['step']:4} {plain['loss']:14.6f} {sharded['loss']:14.6f}")
        # The time of a step is not a loss; ZeRO-3's gradient norm is of its own shards' order.
        for name in plain.keys() - {"step_seconds", "grad_norm"}:
            assert sharded[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-5), name
    assert shapes(tmp_path / "run") == shapes(recipe.parent / "moe"), "the saved model is not whole"


def test_two_processes_give_the_losses_of_one_with_both_batches(
    recipe: Path, data_parallel: list[dict[str, float]], tmp_path: Path
) -> None:
    one = [sys.executable, "-m"]
    log = train(one, recipe, tmp_path / "run", "--gradient_accumulation_steps", "2")
    for pair, single in zip(data_parallel, log, strict=True):
        assert single["loss"] == pytest.approx(pair["loss"], rel=1e-4)


def test_a_deepspeed_recipe_runs_without_a_launcher(
    recipe: Path, data_parallel: list[dict[str, float]], tmp_path: Path
) -> None:
    config = str(REPOSITORY / "zero_configs" / "zero2.json")
    flags = ["--deepspeed", config, "--gradient_accumulation_steps", "2"]
    log = train([sys.executable, "-m"], recipe, tmp_path / "run", *flags)
    assert log[-1]["loss"] == pytest.approx(data_parallel[-1]["loss"], rel=1e-4)


def test_the_deepspeed_launcher_runs_the_same_command(
    recipe: Path, data_parallel: list[dict[str, float]], tmp_path: Path
) -> None:
    launcher = [
        str(Path(sys.executable).parent / "deepspeed"),
        *("--num_gpus", "2", "--master_port", str(free_port())),
        *("--no_local_rank", "--module"),
    ]
    config = REPOSITORY / "zero_configs" / "zero2.json"
    log = train(launcher, recipe, tmp_path / "run", "--deepspeed", str(config))
    assert log[-1]["loss"] == pytest.approx(data_parallel[-1]["loss"], rel=1e-4)


def test_a_run_goes_on_from_its_newest_complete_checkpoint(recipe: Path, tmp_path: Path) -> None:
    config = str(REPOSITORY / "zero_configs" / "zero2.json")
    saving = ["--deepspeed", config, "--save_strategy", "steps", "--save_steps", "2"]
    whole = train(torchrun(), recipe, tmp_path / "run", *saving)
    (tmp_path / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").unlink()  # a torn save
    again = train(torchrun(), recipe, tmp_path / "run", *saving, "--resume", "auto")
    assert [entry["step"] for entry in again] == [entry["step"] for entry in whole]
    assert again[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)
