"""Two gloo processes train adapters: every ZeRO stage gives data-parallel training's losses."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from llava_compete.__main__ import main
from llava_compete.moe.upcycle import PARTS
from tests import tiny
from tests.training.launches import REPOSITORY, train
from tests.training.recipes import argv, make_recipe

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts in every part, adapters beside the decoder's attention."""
    root = tmp_path_factory.mktemp("lora")
    checkpoint = tiny.make_checkpoint(root / "moe", parts=PARTS, perturbation=1.0)
    recipe = make_recipe(
        root,
        checkpoint,
        n=2 * STEPS,
        text_only=(),
        lora={"r": 4, "alpha": 8, "dropout": 0.0, "parts": ["language_model"]},
        per_device_train_batch_size=1,
        max_steps=STEPS,
        competition_rate=0.5,
        competition_max_layers=3,
        competition_warmup=1,
        save_strategy="steps",
        save_steps=2,
    )
    return Path(*argv(recipe))


@pytest.fixture(scope="module")
def plain(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    output = tmp_path_factory.mktemp("ddp") / "run"
    return [entry["loss"] for entry in train(recipe, output)], output


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_zero_gives_the_losses_of_data_parallel_training(
    stage: str, recipe: Path, plain: tuple[list[float], Path], tmp_path: Path
) -> None:
    losses, output = plain
    flags = ["--deepspeed", str(REPOSITORY / "zero_configs" / f"{stage}.json")]
    sharded = [entry["loss"] for entry in train(recipe, tmp_path / "run", *flags)]
    assert sharded == pytest.approx(losses, rel=1e-4)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    expected = load_file(output / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(weights[name], value, atol=1e-3, rtol=1e-3, msg=name)
    if stage == "zero3":
        half = ["--resume", str(tmp_path / "run" / "checkpoint-2")]
        again = [e["loss"] for e in train(recipe, tmp_path / "again", *flags, *half)]
        assert again == sharded


def test_a_run_in_4_bits_goes_on_under_zero_2_and_is_exported(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    values = yaml.safe_load(recipe.read_text())
    values["lora"]["quantize"] = "nf4"
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    losses = [entry["loss"] for entry in train(file, tmp_path / "plain", processes=1)]
    flags = ["--deepspeed", str(REPOSITORY / "zero_configs" / "zero2.json")]
    half = ["--resume", str(tmp_path / "plain" / "checkpoint-2")]
    moved = [entry["loss"] for entry in train(file, tmp_path / "zero2", *flags, *half, processes=1)]
    assert moved == pytest.approx(losses, rel=1e-4)
    checkpoint, out = tmp_path / "zero2" / f"checkpoint-{STEPS}", tmp_path / "out"
    main(["export", str(checkpoint), str(out), "--dtype", "float32"])
    exported = load_file(out / "model.safetensors")
    weights = load_file(tmp_path / "zero2" / "model.safetensors")
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(exported[name], value), name
