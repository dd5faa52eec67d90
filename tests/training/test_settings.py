"""What a resume may change of the recipe, and what it may not."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_compete.config import DataArgs, ModelArgs
from llava_compete.training import settings
from llava_compete.training.args import TrainArgs
from llava_compete.training.manifest import read_manifest
from llava_compete.training.prepare import prepare, run
from llava_compete.training.settings import check_settings
from tests import tiny
from tests.training.recipes import make_recipe


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Any:
    """A recipe, and its run of two steps with a checkpoint behind the first."""
    root = tmp_path_factory.mktemp("settings")
    recipe = make_recipe(
        root,
        checkpoints["moe"],
        text_only=(),
        max_length=400,
        max_steps=2,
        learning_rate=1e-3,
        competition_rate=0.5,
        competition_max_layers=2,
        save_strategy="steps",
        save_steps=1,
        resume="auto",
    )
    recipe.pop("logging_steps")
    run(*prepare(argv(recipe, root)))
    return recipe


def argv(recipe: dict[str, Any], folder: Path) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return [str(file)]


def other_rows(tmp_path: Path) -> dict[str, Any]:
    rows, images = tiny.write_rows(tmp_path / "data", n=8)
    values = json.loads(rows.read_text())
    values[3]["conversations"][1]["value"] = "Another answer."
    rows.write_text(json.dumps(values))
    return {"data_path": str(rows), "image_folder": str(images)}


def same_rows(tmp_path: Path) -> dict[str, Any]:
    rows, images = tiny.write_rows(tmp_path / "elsewhere", n=8)
    return {"data_path": str(rows), "image_folder": str(images)}


FIXED: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"learning_rate": 2e-3}, r"learning_rate: 0.001 in the checkpoint, now 0.002"),
    "schedule": ({"lr_scheduler_type": "cosine"}, r"lr_scheduler_type: 'linear' .* 'cosine'"),
    "warmup": ({"warmup_steps": 1}, "warmup_steps: 0"),
    "seed": ({"seed": 7}, "seed: 42 in the checkpoint, now 7"),
    "trainable": ({"trainable": ["routers"]}, r"trainable: \['projector'\]"),
    "router": ({"router": "topk"}, r"router: None .* now 'topk'"),
    "losses": ({"loss_weights": {"balance": 0.5}}, r"model.moe.projector.loss_weights.balance: 0"),
    "dtype": ({"bf16": True}, "bf16: False in the checkpoint, now True"),
    "batching": ({"batching": "packed"}, "batching: 'shuffled' in the checkpoint, now 'packed'"),
    "length": ({"max_length": 300}, "max_length: 400 in the checkpoint, now 300"),
    "batch": ({"per_device_train_batch_size": 1}, "rows_per_step: 2 in the checkpoint, now 1"),
    "competition": ({"competition_warmup": 1}, "competition_warmup: 0.05"),
    "optimizer": ({"adam_beta2": 0.9}, "adam_beta2: 0.999"),
}


def test_experts_and_adapters_are_known_though_one_side_has_no_key_of_them(
    started: dict[str, Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    dense, parts = {"checkpoint": str(checkpoints["dense"])}, r"\['language_model', 'projector'\]"
    with pytest.raises(ValueError, match=rf"parts_with_experts: {parts} in the .*, now \[\]"):
        prepare(argv({**started, **dense}, tmp_path))
    manifest = read_manifest(Path(started["output_dir"]) / "checkpoint-2")
    assert manifest.settings["adapters"] is False


@pytest.mark.parametrize("kind", FIXED)
def test_another_run_is_refused_by_key_with_both_values(
    started: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    changes, message = FIXED[kind]
    with pytest.raises(ValueError, match=rf"(?s)would go on with another run.*{message}.*begin a"):
        prepare(argv({**started, **changes}, tmp_path))


def test_every_changed_key_is_named(started: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)learning_rate.*weight_decay.*seed"):
        prepare(argv({**started, "seed": 1, "learning_rate": 1.0, "weight_decay": 0.5}, tmp_path))


def test_rows_are_known_by_what_is_in_them(started: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows: '8 rows, \w+' in the checkpoint"):
        prepare(argv({**started, **other_rows(tmp_path)}, tmp_path))
    assert prepare(argv({**started, **same_rows(tmp_path)}, tmp_path))[1] is not None


def test_length_logging_saving_and_layout_may_change(
    started: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(started["output_dir"], output)
    changes = {
        "output_dir": str(output),
        "max_steps": 5,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 1,
        "dataloader_num_workers": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "activation_checkpointing": True,
    }
    trainer, resume_from = prepare(argv({**started, **changes}, tmp_path))
    run(trainer, resume_from)
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [3, 4, 5], "the intervals are the checkpoint's, not the recipe's"
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_run_that_ends_before_its_checkpoint_is_refused(
    started: dict[str, Any], tmp_path: Path
) -> None:
    trainer, resume_from = prepare(argv({**started, "max_steps": 1}, tmp_path))
    with pytest.raises(ValueError, match=r"of step 2, and the recipe ends at step 1: raise max_st"):
        run(trainer, resume_from)


def test_a_key_of_another_version_is_no_difference() -> None:
    check_settings({"seed": 1, "gone": 2}, {"seed": 1, "new": 3}, "checkpoint-1")


def test_the_table_names_keys_that_exist() -> None:
    known = {
        item.name for cls in (ModelArgs, DataArgs, TrainArgs) for item in dataclasses.fields(cls)
    }
    assert not settings.MAY_CHANGE - known
    assert all(any(key.startswith(prefix) for key in known) for prefix in settings.PREFIXES)
