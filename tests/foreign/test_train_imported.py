"""An imported checkpoint is upcycled and trained by the same verbs as one of our own."""

import json
import math

import pytest
import yaml

from llava_compete import load
from llava_compete.__main__ import main
from tests import tiny
from tests.foreign.llava import make_hf_llava


@pytest.mark.slow
def test_import_upcycle_train_export(tmp_path):
    make_hf_llava(tmp_path / "source")
    main(["import", str(tmp_path / "source"), str(tmp_path / "dense")])
    upcycle = ["upcycle", str(tmp_path / "dense"), "--output", str(tmp_path / "moe")]
    main([*upcycle, "--parts", "language_model"])
    rows, images = tiny.write_rows(tmp_path)
    recipe = {
        "checkpoint": str(tmp_path / "moe"),
        "trainable": ["projector", "language_model"],
        "data_path": str(rows),
        "image_folder": str(images),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["train", str(tmp_path / "recipe.yaml")])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    before, after = load(tmp_path / "moe")[0], load(tmp_path / "run")[0]
    moved = {
        name
        for name, value in before.state_dict().items()
        if (value != after.state_dict()[name]).any()
    }
    assert any("experts" in name for name in moved)
    assert not any(name.startswith("vision.") for name in moved)
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--format", "llava_hf"])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llava"
