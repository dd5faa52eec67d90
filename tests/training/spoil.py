"""Layers of a trainer's model that spoil a step, for test_finite.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_compete.moe.competition import Competition
from llava_compete.training.finite import FiniteGuard, Step
from llava_compete.training.trainer import LlavaTrainer


def spoil_forward(trainer: LlavaTrainer, step: int, layer: str) -> None:
    """The layer's output holds a NaN in optimizer step ``step`` (from 1)."""

    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        fault = torch.tensor(math.nan if _step(trainer) == step and module.training else 0.0)
        if isinstance(output, Competition):
            return output._replace(outputs_TKO=output.outputs_TKO + fault)
        return output + fault

    trainer.model.get_submodule(layer).register_forward_hook(hook)


def spoil_backward(trainer: LlavaTrainer, step: int, layer: str) -> None:
    """The gradient of the layer's input overflows in optimizer step ``step``."""

    def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Overflow.apply(args[0], trainer, step), *args[1:])

    trainer.model.get_submodule(layer).register_forward_pre_hook(hook)


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, trainer: LlavaTrainer, step: int) -> Tensor:
        ctx.spoilt = _step(trainer) == step
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * (math.inf if ctx.spoilt else 1.0), None, None


def _step(trainer: LlavaTrainer) -> int:
    """The step that the model runs for; a replay runs for the one that is settled."""
    return trainer.replayed if hasattr(trainer, "replayed") else trainer.state.global_step + 1


def note_replayed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """``trainer.replayed`` tells the faults above which step a replay is of."""
    write = FiniteGuard._write

    def noted(self: FiniteGuard, step: Step) -> str:
        self.trainer.replayed = step.number + 1
        said = write(self, step)
        del self.trainer.replayed
        return said

    monkeypatch.setattr(FiniteGuard, "_write", noted)
