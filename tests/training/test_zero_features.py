"""Two processes on cached features, one of them on text alone: losses as with the tower."""

from pathlib import Path

import pytest

from llava_compete.cache_features import cache_features
from tests import tiny
from tests.training.launches import REPOSITORY, train
from tests.training.recipes import argv, for_two_ranks

pytestmark = pytest.mark.slow

STEPS = 3


def test_under_zero3_a_rank_without_pictures_runs_the_modules_that_the_other_runs(
    tmp_path: Path,
) -> None:
    # Rows are dealt to the ranks in turn: rank 1 sees text alone.
    checkpoint = tiny.make_checkpoint(tmp_path / "moe", perturbation=1.0)
    recipe = for_two_ranks(
        tmp_path, checkpoint, STEPS, deepspeed=str(REPOSITORY / "zero_configs" / "zero3.json")
    )
    recipe["trainable"] = ["projector", "language_model"]
    features = tmp_path / "features"
    rows, images = Path(recipe["data_path"]), Path(recipe["image_folder"])
    cache_features(checkpoint, [rows], images, features, num_workers=0)
    (file,) = argv(recipe)
    with_tower = train(file, tmp_path / "tower")
    cached = train(file, tmp_path / "cached", "--features", str(features))
    assert len(cached) == STEPS
    for one, other in zip(with_tower, cached, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_seconds"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
