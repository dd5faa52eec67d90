"""Before the first step: room for what will be saved, and a trial of saving it; a full disk."""

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import TrainerCallback, TrainerState

from llava_compete.training import trial
from llava_compete.training.prepare import prepare, run
from llava_compete.training.saving import PARTIAL, whole_checkpoints
from llava_compete.training.space import saved_sizes
from llava_compete.training.trainer import LlavaTrainer
from tests.training.recipes import argv, logged_steps, make_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Any:
    root = tmp_path_factory.mktemp("trial")
    return make_recipe(
        root,
        checkpoints["moe"],
        trainable=["projector", "language_model"],
        max_steps=6,
        competition_rate=0.5,
        competition_max_layers=2,
        save_strategy="steps",
        save_steps=2,
    )


def make(recipe: dict[str, Any], output: Path, **changes: Any) -> tuple[LlavaTrainer, Any]:
    return prepare(argv(recipe, output_dir=str(output), **changes))


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in logged_steps(output)]


@pytest.fixture(scope="module")
def undisturbed(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained without a trial; not to be written to."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(*make(recipe, output, trial_save=False))
    return output


def test_a_trial_moves_no_bit_and_leaves_nothing(
    recipe: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run(*make(recipe, output))
    assert losses(output) == losses(undisturbed)
    names = [{path.name for path in folder.iterdir()} for folder in (output, undisturbed)]
    assert names[0] == names[1]
    name = "model.safetensors"
    assert (output / name).read_bytes() == (undisturbed / name).read_bytes()


class Steps(TrainerCallback):
    """Counts the steps that begin."""

    count = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_what_cannot_be_saved_ends_the_run_before_its_first_step(
    recipe: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    """transformers refuses to write a sampling temperature beside greedy decoding."""
    trainer, _ = make(recipe, tmp_path / "run", save_strategy=strategy)
    trainer.add_callback(steps := Steps())
    trainer.model.generation_config.do_sample = False
    trainer.model.generation_config.temperature = 0.5
    with pytest.raises(ValueError, match="temperature"):
        run(trainer, None)
    assert steps.count == 0


def test_what_cannot_be_read_again_ends_the_run_before_its_first_step(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LlavaTrainer._save

    def save(self: LlavaTrainer, output_dir: str, state_dict: Any = None) -> None:
        real(self, output_dir, state_dict)
        (Path(output_dir) / "chat_template.jinja").unlink()

    monkeypatch.setattr(LlavaTrainer, "_save", save)
    trainer, _ = make(recipe, tmp_path / "run")
    trainer.add_callback(steps := Steps())
    with pytest.raises(ValueError, match=r"cannot be read again: .*has no chat_template.jinja"):
        run(trainer, None)
    assert steps.count == 0


def test_a_weight_that_is_not_saved_is_named(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "projector.experts.down_proj"
    real = LlavaTrainer._save

    def save(self: LlavaTrainer, output_dir: str, state_dict: Any = None) -> None:
        kept = {key: value for key, value in self.model.state_dict().items() if key != name}
        real(self, output_dir, kept)

    monkeypatch.setattr(LlavaTrainer, "_save", save)
    with pytest.raises(ValueError, match=rf"has {name} with shape None, the model's is \[4"):
        run(*make(recipe, tmp_path / "run"))


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"save_total_limit": 1}, 2),
        ({"save_total_limit": 2}, 3),
        ({}, 3),
        ({"save_steps": 5}, 2),
        ({"save_total_limit": 9}, 3),
        ({"save_strategy": "no"}, 0),
    ],
)
def test_the_disk_has_to_hold_all_that_will_be_there_at_once(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    count: int,
) -> None:
    trainer, _ = make(recipe, tmp_path / "run", max_steps=6, **changes)
    sizes = saved_sizes(trainer.model, 0)
    needed = sizes.model + count * sizes.checkpoint
    free = Usage(needed - 1)
    monkeypatch.setattr("llava_compete.training.space.shutil.disk_usage", lambda _: free)
    with pytest.raises(ValueError, match=rf"has .* GiB free and needs .* GiB: {count} checkpoints"):
        run(trainer, None)
    free = Usage(needed)
    run(trainer, None)


def test_a_checkpoint_is_as_large_as_said(recipe: dict[str, Any], undisturbed: Path) -> None:
    """Tokenizer, processor and JSON files apart."""
    trainer, _ = make(recipe, undisturbed.with_name("again"))
    sizes = saved_sizes(trainer.model, 0)
    checkpoint = undisturbed / "checkpoint-6"
    weights = (checkpoint / "model.safetensors").stat().st_size
    states = (checkpoint / "optimizer.pt").stat().st_size
    assert weights == pytest.approx(sizes.model, rel=0.05)
    assert weights + states == pytest.approx(sizes.checkpoint, rel=0.1)


class FillDisk(TrainerCallback):
    """Leaves half a checkpoint's room behind step 3."""

    def __init__(self, disk: Path) -> None:
        self.ballast = disk / "ballast"

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 3:
            size = sum(f.stat().st_size for f in (self.ballast.parent / "run").rglob("*.*"))
            free = shutil.disk_usage(self.ballast.parent).free
            self.ballast.write_bytes(bytes(free - size // 2))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """16 MiB of memory as a disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs; the limited file size below says the same")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_while_a_checkpoint_is_written_costs_that_one_alone(
    recipe: dict[str, Any], undisturbed: Path, disk: Path
) -> None:
    output = disk / "run"
    trainer, _ = make(recipe, output)
    trainer.add_callback(fill := FillDisk(disk))
    with pytest.raises(OSError, match=r"(?s)checkpoint-4 could not.*whole checkpoint is .*nt-2: "):
        run(trainer, None)
    assert list(whole_checkpoints(output)) == [2]
    fill.ballast.unlink()
    run(*make(recipe, output, resume="auto"))
    assert losses(output) == losses(undisturbed)
    assert not (output / PARTIAL).exists()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_file_that_cannot_be_written_to_its_end_costs_that_checkpoint_alone(
    recipe: dict[str, Any], undisturbed: Path, tmp_path: Path, name: str
) -> None:
    """safetensors and torch have exceptions of their own for it."""
    trainer, _ = make(recipe, tmp_path / "run", save_steps=2, trial_save=False)
    size = (undisturbed / "checkpoint-2" / name).stat().st_size
    write = trainer.write_checkpoint

    def limited(folder: Path) -> None:
        if trainer.state.global_step < 4:
            return write(folder)
        with file_size_limit(size - 1):
            write(folder)

    trainer.write_checkpoint = limited  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r"(?s)checkpoint-4 could not.*whole checkpoint is .*nt-2: "):
        run(trainer, None)
    assert list(whole_checkpoints(tmp_path / "run")) == [2]


def test_the_trial_is_no_checkpoint(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that ends in its trial begins anew."""

    def fail(*_: Any) -> None:
        raise ValueError("cut")

    monkeypatch.setattr(trial, "read_again", fail)
    with pytest.raises(ValueError, match="cut"):
        run(*make(recipe, tmp_path / "run"))
    monkeypatch.undo()
    _, resume_from = make(recipe, tmp_path / "run", resume="auto")
    assert resume_from is None
    assert not (tmp_path / "run" / PARTIAL).exists()
