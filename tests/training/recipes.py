"""Recipes of tiny trainings, and trainings by them in this process."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from llava_compete.training.prepare import prepare, run
from tests import tiny


def make_recipe(
    root: Path, checkpoint: Path, *, n: int = 8, text_only: Collection[int] = (1,), **values: Any
) -> dict[str, Any]:
    """A recipe over ``n`` rows, drawn below ``root``, where its output will be, too."""
    rows, images = tiny.write_rows(root, n=n, text_only=text_only)
    return {
        "checkpoint": str(checkpoint),
        "trainable": ["projector"],
        "data_path": str(rows),
        "image_folder": str(images),
        "output_dir": str(root / "run"),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **values,
    }


def for_two_ranks(root: Path, checkpoint: Path, steps: int, **values: Any) -> dict[str, Any]:
    """All parts trained, steps with competition, and of every two rows one without picture.

    Rows are dealt to the ranks in turn, so rank 1 sees text alone and routes to other experts.
    """
    return make_recipe(
        root,
        checkpoint,
        n=2 * steps,
        text_only=range(1, 2 * steps, 2),
        trainable=["vision", "projector", "language_model"],
        per_device_train_batch_size=1,
        max_steps=steps,
        train_sampling_strategy="sequential",
        competition_rate=0.5,
        competition_max_layers=3,
        competition_warmup=1,
        **values,
    )


def argv(recipe: dict[str, Any], **changes: Any) -> list[str]:
    """Of `train`: the recipe's file, beside its output directory and of the same name."""
    values = {**recipe, **changes}
    output = Path(values["output_dir"])
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.with_name(f"{output.name}.yaml")
    file.write_text(yaml.safe_dump(values))
    return [str(file)]


def train(recipe: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """Train; the log's lines that have a loss."""
    run(*prepare(argv(recipe, **changes)))
    return logged_steps(Path({**recipe, **changes}["output_dir"]))


def logged_steps(output: Path) -> list[dict[str, Any]]:
    """Lines of a training's log that have a loss."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]
