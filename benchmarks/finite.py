"""What the check for losses and gradients that are not finite costs a step.

The steps of one training take turns, with it and without, so that both kinds meet the same machine.
The time is that of the processor, which a machine shared with others changes little.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from benchmarks.measure import machine, summary, table, write
from benchmarks.plan import make
from llava_compete.training import trainer as trainer_module
from llava_compete.training.finite import FiniteGuard
from llava_compete.training.prepare import prepare, run

WARM_UP = 4  # steps that are not counted


class EveryOther(FiniteGuard):
    """The guard in odd steps, nothing of it in even ones."""

    @property
    def on(self) -> bool:
        """Has the step under way the guard?"""
        return self.trainer.state.global_step % 2 == 1

    def watch(self, inputs: Any, loss: Tensor, terms: Any) -> Tensor:
        return super().watch(inputs, loss, terms) if self.on else loss

    def see_norm(self, norm: Tensor | float) -> None:
        if self.on:
            super().see_norm(norm)
        elif not self.trainer.is_deepspeed_enabled:
            assert self.trainer.optimizer is not None
            self.trainer.optimizer.optimizer.found_inf = None  # type: ignore[attr-defined]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.on:
            super().on_step_begin(*args, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step - 1) % 2 == 1:  # it has been counted by now
            super().on_step_end(args, state, control, **kwargs)


class Clock(TrainerCallback):
    """Processor seconds at which each step began."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun.append(time.process_time())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks finite", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="empty directory to work in")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    args = parser.parse_args(argv)
    recipe = make(args.folder)["plain, all trained"]
    trainer_module.FiniteGuard = EveryOther  # type: ignore[misc]
    flags = ["--max_steps", str(args.steps), "--logging_steps", str(args.steps)]
    quiet = ["--competition_rate", "0", "--per_device_train_batch_size", "1"]
    trainer, _ = prepare([str(recipe), *flags, *quiet])
    clock = Clock()
    trainer.add_callback(clock)
    run(trainer, None)
    pairs = zip(clock.begun[WARM_UP:], clock.begun[WARM_UP + 1 :], strict=False)
    seconds = [after - begin for begin, after in pairs]
    found = {"without": seconds[0::2], "with": seconds[1::2]}
    ratios = [b / a for a, b in zip(*found.values(), strict=False)]
    rows = [(name, *(1e3 * x for x in summary(each).values())) for name, each in found.items()]
    print(table([("ms of a step", "median", "least", "most"), *rows]))
    print(f"with / without, median of {len(ratios)} neighbours: {statistics.median(ratios):.4f}")
    if args.json:
        write(args.json, {"machine": machine(), "seconds": found})
