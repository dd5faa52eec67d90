"""Checkpoints in one process: whole or absent, newest whole one taken, none of the last removed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_compete import load
from llava_compete.training.manifest import MANIFEST, read_manifest
from llava_compete.training.output import find_resume
from llava_compete.training.prepare import prepare, run
from llava_compete.training.saving import PARTIAL, clean_up, whole_checkpoints
from tests.training.recipes import argv, make_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Any:
    root = tmp_path_factory.mktemp("saving")
    return make_recipe(
        root,
        checkpoints["moe"],
        max_steps=6,
        learning_rate=1e-3,
        competition_rate=0.5,
        competition_max_layers=2,
        save_strategy="steps",
        save_steps=2,
    )


def train(recipe: dict[str, Any], output: Path, **changes: Any) -> Path:
    run(*prepare(argv(recipe, output_dir=str(output), **changes)))
    return output


@pytest.fixture(scope="module")
def trained(recipe: dict[str, Any]) -> Path:
    """A run of 6 steps, saved at each second; not to be written to."""
    return train(recipe, Path(recipe["output_dir"]))


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def steps(output: Path) -> list[int]:
    return sorted(whole_checkpoints(output))


def test_every_checkpoint_has_a_manifest_and_nothing_is_left_aside(
    recipe: dict[str, Any], trained: Path
) -> None:
    assert steps(trained) == [2, 4, 6]
    assert not (trained / PARTIAL).exists()
    manifest = read_manifest(trained / "checkpoint-4")
    assert (manifest.step, manifest.world_size, manifest.zero_stage) == (4, 1, 0)
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= set(manifest.files)
    assert {"rng_state.pth", "trainer_state.json"} <= set(manifest.files)
    assert manifest.recipe["learning_rate"] == recipe["learning_rate"]
    last = load(trained / "checkpoint-6")[0].state_dict()
    assert all(torch.equal(last[n], v) for n, v in load(trained)[0].state_dict().items())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", MANIFEST])
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(
    output: Path,
    damage: Callable[[Path], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(output / "checkpoint-6" / name)
    assert find_resume("auto", output) == str(output / "checkpoint-4")
    assert "passes over checkpoint-6" in caplog.text
    assert name in caplog.text
    with pytest.raises(ValueError, match=rf"resume=.*checkpoint-6: .*{name}"):
        find_resume(str(output / "checkpoint-6"), output)


def test_auto_starts_where_there_is_no_checkpoint(tmp_path: Path, output: Path) -> None:
    assert find_resume("auto", tmp_path / "nothing") is None
    assert find_resume("never", output) is None
    assert find_resume("auto", output) == str(output / "checkpoint-6")


def test_a_checkpoint_of_weights_alone_is_not_resumed(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    output = train(recipe, tmp_path / "run", save_only_model=True, max_steps=2)
    assert find_resume("auto", output) is None
    with pytest.raises(ValueError, match=r"neither optimizer nor random states \(save_only_model"):
        find_resume(str(output / "checkpoint-2"), output)


def test_the_limit_counts_whole_checkpoints_alone(recipe: dict[str, Any], output: Path) -> None:
    for step in (4, 6):
        cut(output / f"checkpoint-{step}" / "optimizer.pt")
    train(recipe, output, resume="auto", max_steps=8, save_total_limit=2)
    assert steps(output) == [6, 8], "a damaged checkpoint took the place of a whole one"


def test_the_limit_keeps_the_newest(recipe: dict[str, Any], tmp_path: Path) -> None:
    output = train(recipe, tmp_path / "run", save_total_limit=1)
    assert steps(output) == [6]
    assert not (output / PARTIAL).exists()


def test_what_an_earlier_start_left_is_removed_and_said(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partial = output / PARTIAL
    partial.mkdir()
    (output / "checkpoint-6").rename(partial / "checkpoint-6")
    (partial / "checkpoint-6" / MANIFEST).unlink()
    (output / "checkpoint-4").rename(partial / "checkpoint-4")
    (output / "checkpoint-2").rename(partial / "removed-2")
    clean_up(output)
    assert steps(output) == [4], "one that was whole but for its name was lost"
    assert not partial.exists()
    assert "checkpoint-4 is whole" in caplog.text
    assert "checkpoint-6" in caplog.text
    assert "removed-2 is left" in caplog.text


@pytest.mark.parametrize("fails", ["optimizer", "state"])
def test_a_save_that_fails_leaves_the_last_checkpoint(
    recipe: dict[str, Any],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    """torch says RuntimeError where the disk is full, Python OSError."""
    from llava_compete.training.trainer import LlavaTrainer

    if fails == "optimizer":
        name, error = "_save_optimizer_and_scheduler", RuntimeError("writing file failed")
    else:
        name, error = "_save_rng_state", OSError(28, "No space left on device")
    real = getattr(LlavaTrainer, name)

    def save(self: LlavaTrainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise error
        real(self, folder)

    monkeypatch.setattr(LlavaTrainer, name, save)
    with pytest.raises(OSError, match=r"(?s)checkpoint-4 could not .* checkpoint is .*point-2"):
        train(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert steps(tmp_path / "run") == [2]
    whole = json.loads((trained / "trainer_state.json").read_text())
    output = train(recipe, tmp_path / "run", resume="auto")
    again = json.loads((output / "trainer_state.json").read_text())
    losses = [[e["loss"] for e in s["log_history"] if "loss" in e] for s in (whole, again)]
    assert losses[0] == losses[1]
    assert not (output / PARTIAL).exists()


def test_a_file_that_another_rank_does_not_see_is_named(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where each machine has an output_dir of its own."""
    monkeypatch.setattr(
        "llava_compete.training.saving.list_files", lambda folder: ["rng_state_1.pth"]
    )
    with pytest.raises(OSError, match=r"rank 0 does not see .*rng_state_1.pth: all ranks have to"):
        train(recipe, tmp_path / "run")
