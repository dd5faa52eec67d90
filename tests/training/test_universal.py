"""A run goes on with another number of processes and under another ZeRO stage."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file

from llava_compete import MoEConfig, load, save, upcycle_model
from llava_compete.training.export import export
from llava_compete.training.manifest import MANIFEST
from llava_compete.training.states import open_states
from tests import tiny
from tests.training.launches import launch

pytestmark = pytest.mark.slow

STEPS = 6


class Run(NamedTuple):
    name: str
    config: str  # none, or a file of zero_configs/
    source: str | None = None  # the checkpoint to go on from; None: from the start


# Two processes, then one that goes on from step 2, then two again that go on from step 4.
BEGUN = (Run("none", "none"), Run("zero1", "zero1"), Run("zero2", "zero2"))
ALONE = (
    Run("none-1", "none", "none/checkpoint-2"),
    Run("mixed-1", "none", "zero2/checkpoint-2"),
    Run("zero2-1", "zero2", "zero2/checkpoint-2"),
)
AGAIN = (
    Run("none-1-2", "none", "none-1/checkpoint-4"),
    Run("mixed-1-2", "zero3", "mixed-1/checkpoint-4"),
    Run("zero2-1-2", "zero2", "zero2-1/checkpoint-4"),
    Run("zero2-zero3", "zero3", "zero2/checkpoint-2"),
    Run("none-zero2", "zero2", "none/checkpoint-2"),
    Run("zero1-zero2", "zero2", "zero1/checkpoint-2"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Competing layers, router state, three learning rates, rows that do not fill an epoch."""
    root = tmp_path_factory.mktemp("universal")
    model, processor = tiny.compose_tiny(root / "parts")
    experts = {"language_model": MoEConfig(), "projector": MoEConfig(router="expert_race")}
    upcycle_model(model, experts, perturbation=1.0)
    save(model, processor, root / "moe")
    rows, images = tiny.write_rows(root, n=9, text_only=(1, 5))
    values: dict[str, Any] = {
        "checkpoint": str(root / "moe"),
        "trainable": ["projector", "language_model"],
        "data_path": str(rows),
        "image_folder": str(images),
        "output_dir": "unused",
        "batching": "length_grouped",
        "per_device_train_batch_size": 1,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "part_learning_rates": {"projector": 5e-3, "routers": 2e-2},
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "competition_rate": 0.5,
        "competition_max_layers": 3,
        "competition_warmup": 1,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    for processes, planned in ((2, BEGUN), (1, ALONE), (2, AGAIN)):
        for run in planned:
            if run.source is not None:
                source = root / "runs" / run.source
                shutil.copytree(source, root / "runs" / run.name / source.name)
        words = [f"{run.name}:{run.config}" for run in planned]
        words = [str(recipe), str(root / "runs"), *words]
        said = launch("tests.training.move_each", words, processes=processes)
        assert ("gradient_accumulation_steps=2 in place of 1 keeps the 2 rows" in said) == (
            processes == 1
        )
    return root / "runs"


def losses(run: Path) -> list[dict[str, float]]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.mark.parametrize("run", [run.name for run in (*ALONE, *AGAIN)])
def test_a_moved_run_has_the_losses_of_the_undisturbed_one(runs: Path, run: str) -> None:
    moved, whole = losses(runs / run), losses(runs / "none")
    assert [entry["step"] for entry in moved] == list(range(1, STEPS + 1))
    largest = max(abs(a["loss"] - b["loss"]) for a, b in zip(moved, whole, strict=True))
    print(f"\n{run}: largest difference of a loss {largest:.1e} of {whole[0]['loss']:.1f}")
    for entry, expected in zip(moved, whole, strict=True):
        assert entry["learning_rate"] == expected["learning_rate"]
        for name in expected.keys() - {"step_seconds", "grad_norm", "data/filled"}:
            assert entry[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_states_move_to_the_bit(runs: Path) -> None:
    """ZeRO-1 and ZeRO-2 calculate alike, so that what was moved is what would have been there."""
    moved, whole = load_file(runs / "zero1-zero2/model.safetensors"), runs / "zero2"
    expected = load_file(whole / "model.safetensors")
    assert moved.keys() == expected.keys()
    assert not [name for name in moved if not torch.equal(moved[name], expected[name])]


@pytest.mark.parametrize(
    "checkpoint",
    ["zero1/checkpoint-2", "zero2-1/checkpoint-4", "mixed-1-2/checkpoint-6", "none/checkpoint-6"],
)
def test_export_is_the_model_of_the_checkpoint(runs: Path, checkpoint: str, tmp_path: Path) -> None:
    export(runs / checkpoint, tmp_path / "out", dtype=torch.float32)
    model, _ = load(tmp_path / "out")
    exported = model.state_dict()
    saved, _ = load(runs / checkpoint)
    assert not [n for n, value in saved.state_dict().items() if not value.equal(exported[n])]
    if (runs / checkpoint / "latest").exists():
        consolidated = get_fp32_state_dict_from_zero_checkpoint(str(runs / checkpoint))
        assert not [n for n, value in consolidated.items() if not value.equal(exported[n])]


def test_export_needs_no_safetensors_of_zero3(runs: Path, tmp_path: Path) -> None:
    expected = load_file(runs / "zero2-zero3/checkpoint-6/model.safetensors")
    without = shutil.ignore_patterns("model.safetensors", MANIFEST)
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(runs / "zero2-zero3/checkpoint-6", checkpoint, ignore=without)
    export(checkpoint, tmp_path / "out")
    exported = load_file(tmp_path / "out/model.safetensors")
    assert exported.keys() == expected.keys()
    for name, value in exported.items():
        state = "state_" in name
        assert value.dtype == (expected[name].dtype if state else torch.bfloat16)
        assert value.equal(expected[name].to(value.dtype))


def test_a_missing_rank_is_named(runs: Path, tmp_path: Path) -> None:
    checkpoint = runs / "zero1/checkpoint-4"
    (checkpoint / "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(ValueError, match=r"lacks optim_states files: it has those of \[1\]"):
        open_states(checkpoint)
    with pytest.raises(ValueError, match=r"rank_0_mp_rank_00_optim_states\.pt is missing"):
        export(checkpoint, tmp_path / "out")
