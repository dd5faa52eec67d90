"""Two gloo processes under ZeRO-3: the figures of all ranks' tokens, and nobody waits for ever."""

from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.training.launches import train

pytestmark = pytest.mark.slow
ROWS = 4


def test_two_ranks_log_what_one_process_does(tmp_path: Path) -> None:
    """Rank 1 sees text alone, so that only rank 0 has patches to count."""
    checkpoint = tiny.make_checkpoint(tmp_path / "moe", perturbation=1.0)
    rows, images = tiny.write_rows(tmp_path, n=ROWS, text_only=range(1, ROWS, 2))
    recipe = {
        "checkpoint": str(checkpoint),
        "trainable": ["projector", "language_model"],
        "data_path": str(rows),
        "image_folder": str(images),
        "output_dir": str(tmp_path / "unused"),
        "per_device_train_batch_size": 1,
        "max_steps": 1,
        "train_sampling_strategy": "sequential",
        "competition_warmup": 1,
        "routing_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    (ranks,) = train(file, tmp_path / "ranks", "--deepspeed", "zero_configs/zero3.json")
    both = ["--gradient_accumulation_steps", "2"]
    (alone,) = train(file, tmp_path / "alone", *both, processes=1)
    names = {name for name in alone if "/layer_" in name}
    assert len(names) > 50
    assert names == {name for name in ranks if "/layer_" in name}
    for name in names:
        assert ranks[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name
