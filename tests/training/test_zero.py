"""Two gloo processes: every ZeRO stage gives the losses of plain data-parallel training."""

import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from llava_compete.moe.upcycle import PARTS
from tests import tiny
from tests.training.launches import REPOSITORY, free_port, torchrun, train, train_by
from tests.training.recipes import argv, for_two_ranks

pytestmark = pytest.mark.slow

STEPS = 6


def shapes(checkpoint: Path) -> dict[str, list[int]]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of experts that differ; rank 1 sees text alone."""
    root = tmp_path_factory.mktemp("zero")
    checkpoint = tiny.make_checkpoint(root / "moe", parts=PARTS, perturbation=1.0)
    return Path(*argv(for_two_ranks(root, checkpoint, STEPS)))


@pytest.fixture(scope="module")
def data_parallel(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return train_by(torchrun(), recipe, tmp_path_factory.mktemp("ddp") / "run")


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
    log = train(recipe, tmp_path / "run", *flags)
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
    both = ["--gradient_accumulation_steps", "2"]
    log = train(recipe, tmp_path / "run", *both, processes=1)
    for pair, single in zip(data_parallel, log, strict=True):
        assert single["loss"] == pytest.approx(pair["loss"], rel=1e-4)


def test_a_deepspeed_recipe_runs_without_a_launcher(
    recipe: Path, data_parallel: list[dict[str, float]], tmp_path: Path
) -> None:
    config = str(REPOSITORY / "zero_configs" / "zero2.json")
    flags = ["--deepspeed", config, "--gradient_accumulation_steps", "2"]
    log = train(recipe, tmp_path / "run", *flags, processes=1)
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
    log = train_by(launcher, recipe, tmp_path / "run", "--deepspeed", str(config))
    assert log[-1]["loss"] == pytest.approx(data_parallel[-1]["loss"], rel=1e-4)


def test_a_run_goes_on_from_its_newest_complete_checkpoint(recipe: Path, tmp_path: Path) -> None:
    config = str(REPOSITORY / "zero_configs" / "zero2.json")
    saving = ["--deepspeed", config, "--save_strategy", "steps", "--save_steps", "2"]
    whole = train(recipe, tmp_path / "run", *saving)
    (tmp_path / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").unlink()  # a torn save
    again = train(recipe, tmp_path / "run", *saving, "--resume", "auto")
    assert [entry["step"] for entry in again] == [entry["step"] for entry in whole]
    assert again[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)
