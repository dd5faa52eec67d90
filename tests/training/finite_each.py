"""Trainings in which rank 1 alone meets a fault, for test_finite_ranks.py: importing takes longer.

    torchrun --nproc-per-node 2 -m tests.training.finite_each RECIPE OUTPUT CONFIG...

CONFIG is a DeepSpeed configuration. Of each, OUTPUT/NAME-skip leaves out a step with a NaN in the
forward and one with an infinite gradient, OUTPUT/NAME-stop ends at the first and leaves rank R's
message in error-R.txt, OUTPUT/NAME-silent has steps in which one rank, and all ranks, have no
answer.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch

from llava_compete.data import IGNORED
from llava_compete.moe.competition import Competition
from llava_compete.training.prepare import prepare, run
from llava_compete.training.trainer import LlavaTrainer

LAYER = "language_model.model.layers.1.mlp.experts"
FORWARD, BACKWARD = 2, 4  # the spoilt steps, from 1
NO_ANSWER, NONE_AT_ALL = 2, 3


class Spoil(torch.autograd.Function):
    """A factor for the value and one for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        ctx.factor = backward
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient * ctx.factor, None, None


def spoil(trainer: LlavaTrainer) -> None:
    """On rank 1. A replay in the same step, where everything is logged, meets the fault again."""

    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        # A verdict is read behind the step, whose number has been counted by then.
        step = trainer.state.global_step + (not trainer.control.should_log)
        faulty = trainer.args.process_index == 1
        forward = math.nan if faulty and step == FORWARD else 1.0
        backward = math.inf if faulty and step == BACKWARD else 1.0
        if isinstance(output, Competition):
            return output._replace(outputs_TKO=Spoil.apply(output.outputs_TKO, forward, backward))
        return Spoil.apply(output, forward, backward)

    trainer.model.get_submodule(LAYER).register_forward_hook(hook)


def silence(trainer: LlavaTrainer) -> None:
    """No answers on rank 1 in one step, on no rank in another."""
    collate, drawn = trainer.data_collator, 0

    def silent(samples: Any) -> dict[str, Any]:
        nonlocal drawn
        drawn += 1
        batch = collate(samples)
        if drawn == NONE_AT_ALL or (drawn == NO_ANSWER and trainer.args.process_index == 1):
            batch["labels"].fill_(IGNORED)
        return batch

    trainer.data_collator = silent


def train_each(recipe: str, output: Path, configs: list[str]) -> None:
    """Each kind of run under each configuration."""
    for config in configs or [""]:
        name = Path(config).stem or "none"
        zero = ["--deepspeed", config] if config else []
        for kind in ("skip", "stop", "silent"):
            directory = output / f"{name}-{kind}"
            policy = ["--non_finite", "stop" if kind == "stop" else "skip"]
            argv = [recipe, "--output_dir", str(directory), *policy, *zero]
            trainer, _ = prepare([*argv, "--max_non_finite_share", "0.02"])
            (silence if kind == "silent" else spoil)(trainer)
            if kind != "stop":
                run(trainer, None)
                continue
            try:
                run(trainer, None)
            except ValueError as error:
                (directory / f"error-{trainer.args.process_index}.txt").write_text(str(error))


if __name__ == "__main__":
    train_each(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
