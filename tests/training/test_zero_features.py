"""Two processes on cached features, one of them on text alone: losses as with the tower."""

from pathlib import Path

import pytest

from llava_compete.cache_features import cache_features
from tests import tiny
from tests.training.test_zero import REPOSITORY, torchrun, train

pytestmark = pytest.mark.slow

STEPS = 3


def test_under_zero3_a_rank_without_pictures_runs_the_modules_that_the_other_runs(
    tmp_path: Path,
) -> None:
    # Rows are dealt to the ranks in turn: rank 1 sees text alone.
    checkpoint = tiny.make_checkpoint(tmp_path / "moe", perturbation=1.0)
    rows, images = tiny.write_rows(tmp_path, n=2 * STEPS, text_only=range(1, 2 * STEPS, 2))
    features = tmp_path / "features"
    cache_features(checkpoint, [rows], images, features, num_workers=0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
        checkpoint: {checkpoint}
        trainable: [projector, language_model]
        data_path: {rows}
        image_folder: {images}
        output_dir: {tmp_path / "unused"}
        per_device_train_batch_size: 1
        max_steps: {STEPS}
        learning_rate: 1e-2
        train_sampling_strategy: sequential
        deepspeed: {REPOSITORY / "zero_configs" / "zero3.json"}
        logging_steps: 1
        save_strategy: "no"
        use_cpu: true
        report_to: none
        """
    )
    with_tower = train(torchrun(), recipe, tmp_path / "tower")
    cached = train(torchrun(), recipe, tmp_path / "cached", "--features", str(features))
    assert len(cached) == STEPS
    for one, other in zip(with_tower, cached, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_seconds"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
