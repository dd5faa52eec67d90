"""A run that goes on from a checkpoint equals the undisturbed one to the bit.

Three stages, and bfloat16 with a router that has state; no DeepSpeed and ZeRO-1, 2, 3, one process
and two; saved between two log lines.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_compete import load, save
from llava_compete.training.states import load_pickled
from tests import tiny
from tests.training.launches import REPOSITORY, launch

pytestmark = pytest.mark.slow

STEPS, SAVED = 6, 3
CONFIGS = ("none", "zero1", "zero2", "zero3")
TIMES = {"step_seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "max_steps": STEPS,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": SAVED,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
STAGES: dict[str, dict[str, Any]] = {
    "align": {"checkpoint": "dense", "trainable": ["projector"]},
    "prefinetune": {
        "checkpoint": "dense",
        "trainable": ["vision", "projector", "language_model"],
        "batching": "length_grouped",
        "part_learning_rates": {"vision": 1e-3},
        "weight_decay": 0.1,
    },
    "finetune": {
        "checkpoint": "moe",
        "trainable": ["vision", "projector", "language_model"],
        "batching": "packed",
        "max_length": 200,
        "competition_rate": 0.4,
        "competition_max_layers": 3,
        "competition_warmup": 0.2,
    },
    "bfloat16": {
        "checkpoint": "biased",
        "trainable": ["vision", "projector", "language_model"],
        "bf16": True,
        "activation_checkpointing": True,
    },
}


def with_dropout(checkpoint: Path, target: Path) -> Path:
    """The same weights in ``target``; attention draws random numbers in training."""
    model, processor = load(checkpoint)
    model.config.text_config.attention_dropout = 0.2
    save(model, processor, target)
    return target


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> list[str]:
    root = tmp_path_factory.mktemp("resume")
    rows, images = tiny.write_rows(root, n=24, text_only=range(1, 24, 2))
    biased = tiny.make_checkpoint(root / "plain", router="shared_v3")  # moves a bias once a step
    known = {**checkpoints, "biased": biased}
    dropping = {name: with_dropout(path, root / name) for name, path in known.items()}
    files = []
    for stage, keys in STAGES.items():
        values = {**COMMON, **keys, "checkpoint": str(dropping[keys["checkpoint"]])}
        values |= {"data_path": str(rows), "image_folder": str(images), "output_dir": "unused"}
        file = root / f"{stage}.yaml"
        file.write_text(yaml.safe_dump(values))
        files.append(str(file))
    return files


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def runs(
    request: pytest.FixtureRequest, recipes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp(f"runs-{request.param}")
    configs = [str(REPOSITORY / "zero_configs" / f"{name}.json") for name in CONFIGS[1:]]
    words = [str(output), str(SAVED), *recipes, "--", *configs]
    launch("tests.training.resume_each", words, processes=request.param)
    return output


def states(folder: Path) -> dict[str, Any]:
    """All that the optimizers of the ranks hold, by file."""
    files = [*folder.rglob("*optim_states.pt"), *folder.glob("optimizer.pt")]
    assert files
    return {str(file.relative_to(folder)): load_pickled(file) for file in files}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Places where two nested states are not equal to the bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return [] if same and torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {one.keys()} and {other.keys()}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, int | float | str | bool | None):
        return [] if one == other else [f"{where}: {one} and {other}"]
    return [] if type(one) is type(other) else [where]


def logged(run: Path) -> list[dict[str, float]]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in history]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_undisturbed_one(runs: Path, stage: str, config: str) -> None:
    whole, again = runs / stage / config / "whole", runs / stage / config / "again"
    assert logged(again) == logged(whole)
    assert len(logged(whole)) == STEPS // 2 + 1
    weights, expected = (load_file(run / "model.safetensors") for run in (again, whole))
    assert weights.keys() == expected.keys()
    assert not [name for name in weights if not torch.equal(weights[name], expected[name])]
    last = f"checkpoint-{STEPS}"
    assert differences(states(again / last), states(whole / last)) == []
    for file in ("skipped.jsonl", "data.json"):
        assert (again / file).exists() == (whole / file).exists()


def test_all_ranks_refuse_a_damaged_checkpoint_by_its_path(
    recipes: list[str], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{")
    words = [
        "train",
        recipes[0],
        "--resume",
        str(checkpoint),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    said = launch("llava_compete", words, processes=2, fails=True)
    assert said.count(f"error: resume={checkpoint}: {checkpoint}/manifest.json is damaged") == 2
