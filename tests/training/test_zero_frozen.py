"""DeepSpeed keeps nothing for parameters that are not trained."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.training.launches import REPOSITORY, launch
from tests.training.recipes import argv, make_recipe

pytestmark = pytest.mark.slow

STAGES = ("zero1", "zero2", "zero3")
ALIGNED = 16  # numbers, to a multiple of which a flat group or a parameter may be filled up


def test_copies_states_and_gradients_are_of_the_trained_parameters_alone(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(tmp_path / "dense", moe=False)
    recipe = make_recipe(tmp_path, checkpoint, max_steps=1)  # of the projector
    configs = [str(REPOSITORY / "zero_configs" / f"{stage}.json") for stage in STAGES]
    launch("tests.training.frozen_each", [*argv(recipe), str(tmp_path), *configs], processes=1)
    for stage in STAGES:
        found = json.loads((tmp_path / f"{stage}.json").read_text())
        assert found["frozen_with_gradient"] == 0
        room = found["trained"] + ALIGNED * found["tensors"]
        kinds = {"copies", "states"} | ({"gradients"} if stage == "zero3" else set())
        for kind in kinds:
            assert found["trained"] <= found[kind] <= room, (stage, kind, found)
