"""What a rank does to itself: set up in the forked process, before the training begins.

The product knows nothing of it: methods of the trainer and of the dataset are replaced there.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llava_compete.data import LlavaDataset
from llava_compete.training.trainer import LlavaTrainer
from tests.faults.runs import Hook

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep() -> None:
    time.sleep(1e6)


def in_save(event: int) -> Hook:
    """Die at so many openings, renamings and removals of files within saves of checkpoints."""
    return partial(_die_in_save, event)


def _die_in_save(event: int) -> None:
    saving, seen = False, 0

    def count(name: str, _: tuple[Any, ...]) -> None:
        nonlocal seen
        if saving and name in FILE_EVENTS:
            seen += 1
            if seen == event:
                die()

    save = LlavaTrainer._save_checkpoint

    def counted(self: LlavaTrainer, *args: Any) -> None:
        nonlocal saving
        saving = True
        save(self, *args)
        saving = False

    LlavaTrainer._save_checkpoint = counted
    sys.addaudithook(count)


def in_loading(draw: int) -> Hook:
    """Kill the rank while its ``draw``-th row is read, by itself or by its loader's worker."""
    return partial(_die_in_loading, draw, os.getpid())


def _die_in_loading(draw: int, driver: int) -> None:
    read, drawn = LlavaDataset.__getitem__, 0

    def counted(self: LlavaDataset, index: int) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == draw:
            parent = os.getppid()  # the driver's, if this is the rank, else the rank's
            os.kill(os.getpid() if parent == driver else parent, signal.SIGKILL)
        return read(self, index)

    LlavaDataset.__getitem__ = counted  # type: ignore[method-assign]


def at_step(step: int, act: Callable[[], None]) -> Hook:
    """Do something before the ``step``-th micro-batch of the process."""
    return partial(_before_step, step, lambda _: act())


def nan_at_step(step: int) -> Hook:
    """Put a NaN into the first trained weight before the ``step``-th micro-batch."""
    return partial(_before_step, step, _put_nan)


def _before_step(step: int, act: Callable[[torch.nn.Module], None]) -> None:
    train, steps = LlavaTrainer.training_step, 0

    def counted(self: LlavaTrainer, model: torch.nn.Module, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            act(model)
        return train(self, model, *args)

    LlavaTrainer.training_step = counted


def _put_nan(model: torch.nn.Module) -> None:
    trained = next(p for p in model.parameters() if p.requires_grad)
    values = trained.ds_tensor if hasattr(trained, "ds_tensor") else trained  # ZeRO-3's shard
    values.data.flatten()[0] = float("nan")


def fill_disk(folder: Path) -> Callable[[], None]:
    """Leave no byte on the file system of ``folder``: to be done at a step."""
    return partial(_fill, folder / "filler")


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:  # no room for so much
                continue
