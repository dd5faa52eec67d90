"""Every recipe that ships is one the trainer takes."""

import json
from pathlib import Path

import pytest

from llava_compete.config import DataArgs, ModelArgs, parse
from llava_compete.training.args import TrainArgs
from llava_compete.training.parts import COARSE_PARTS, FINE_PARTS

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_understood_whole(recipe: Path) -> None:
    # On a machine without a GPU transformers refuses what only a GPU has; DeepSpeed's
    # configuration is read by training/test_zero.py, in processes of its own.
    cpu = ["--use_cpu", "true", "--tf32", "false", "--deepspeed", ""]
    model, _, args = parse((ModelArgs, DataArgs, TrainArgs), [str(recipe), *cpu], prog="test")
    assert set(model.trainable) <= {*COARSE_PARTS, *FINE_PARTS}
    assert args.learning_rate > 0
    assert args.activation_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_a_zero_config_clips_and_sizes_as_the_recipe_says(stage: str) -> None:
    config = json.loads((REPOSITORY / "zero_configs" / f"{stage}.json").read_text())
    assert config["zero_optimization"]["stage"] == int(stage[4])
    for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[key] == "auto"
