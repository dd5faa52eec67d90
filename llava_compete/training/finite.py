"""Steps whose loss or gradient is not finite: found on the device, written down, left out.

N loss terms of a micro-batch.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_compete.data.aside import written_aside
from llava_compete.moe.routers import Router
from llava_compete.training.replay import bad_parameters, replay, rows_of

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

NON_FINITE = "non_finite.json"  # in the output directory, a list of the steps
STATE = "non_finite_steps"  # its place in the trainer's state
UNIT = 100  # a share is of whole hundreds of steps

logger = logging.getLogger(__name__)


class MicroBatch(NamedTuple):
    """What one forward of the step was given, and which of its loss terms were finite."""

    inputs: dict[str, Any]
    names: tuple[str, ...]
    finite_N: Tensor  # bool, on the device


class Step(NamedTuple):
    """A step whose verdict the host has not read yet."""

    number: int  # from 0
    bad: "_Flag"
    batches: list[MicroBatch]
    competing: list[bool]
    schedule: dict[str, Any]  # of the learning rates, before the step
    rates: list[float]


class FiniteGuard(TrainerCallback):
    """Leaves out a step whose gradient norm, or any of whose loss terms, is not finite.

    A term that is not finite makes its loss, and so every rank's gradient norm, NaN: the norm,
    which all ranks share, is the verdict, and no rank has to be asked. The optimizer heeds it on
    the device (DeepSpeed's ZeRO by itself, a fused one by ``found_inf``; any other has the host
    wait for it, and then finds no gradient). The host reads it where it logs or saves, else a step
    later, when the next one's work lies before the device.

    Such a step leaves weights, optimizer, learning rates and router state as they were. Its rows
    are used up and its number is taken, so that the competition schedule and the data go on as
    before. What was wrong goes to NON_FINITE (see replay.py). Then ``stop`` ends the run, on all
    ranks alike, with a ValueError; ``skip`` goes on until more than ``max_non_finite_share`` of the
    steps, in whole hundreds, were left out.

    The inputs of a step are held until the next one's backward.
    """

    def __init__(self, trainer: "LlavaTrainer") -> None:
        self.trainer = trainer
        self.file = Path(trainer.args.output_dir) / NON_FINITE
        self.skipped = 0  # of the run, its starts before a resume included
        self.bad = torch.zeros((), dtype=torch.bool, device=trainer.args.device)  # the last step
        self._competitors = trainer.model.competitors()  # found once: every module is asked
        self._batches: list[MicroBatch] = []  # of the step under way
        self._open: Step | None = None
        self.logged = (0, 0)  # steps, and those left out, since the last log; progress.py keeps it
        _check_zero(trainer.args)

    def watch(self, inputs: Mapping[str, Any], loss: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss, and a NaN with a NaN gradient where it or a term is not finite."""
        values_N = torch.stack([value.detach().float() for value in (*terms.values(), loss)])
        batch = MicroBatch(dict(inputs), (*terms, "loss"), values_N.isfinite())
        self._batches.append(batch)
        # By a product: a NaN that is added to a loss has no share in its gradient.
        return loss * torch.where(batch.finite_N.all(), 1.0, torch.nan)

    def see_norm(self, norm: Tensor | float) -> None:
        """The step's gradient norm, before the optimizer; of DeepSpeed, behind it."""
        self.settle()
        trainer = self.trainer
        if isinstance(norm, Tensor):
            self.bad = ~norm.detach().isfinite()
        else:
            self.bad = torch.full_like(self.bad, not math.isfinite(norm))
        optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
        assert optimizer is not None
        assert schedule is not None
        if not trainer.is_deepspeed_enabled:
            if all(group.get("fused") for group in optimizer.param_groups):
                optimizer.optimizer.found_inf = self.bad.float()  # type: ignore[attr-defined]
            elif self.bad:
                trainer.model.zero_grad()
        self._open = Step(
            number=trainer.state.global_step,
            bad=_Flag(self.bad),
            batches=self._batches,
            competing=[layer.competing for layer in self._competitors],
            schedule=schedule.state_dict(),
            rates=[group["lr"] for group in optimizer.param_groups],
        )
        self._batches = []

    @contextmanager
    def unless_bad(self, routers: list[Router]) -> Iterator[None]:
        """What the block does to the routers' state is undone, on the device, in a bad step."""
        before = [(state, state.clone()) for router in routers for state in router.buffers()]
        yield
        for state, value in before:
            state.copy_(torch.where(self.bad, value, state))

    def correct(self, logs: dict[str, Any]) -> None:
        """The mean loss is that of the steps that were taken; without one there is none."""
        steps, skipped = self.logged
        self.logged = (0, 0)
        if "loss" in logs and skipped == steps:
            del logs["loss"]
        elif "loss" in logs:
            logs["loss"] *= steps / (steps - skipped)
        if self.trainer.args.non_finite == "skip":
            logs["non_finite/skipped"] = self.skipped

    def settle(self) -> None:
        """Read the verdict on the last step; write down and judge a bad one."""
        step, self._open = self._open, None
        if step is None or not step.bad.read():
            return
        trainer = self.trainer
        optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
        assert optimizer is not None
        assert schedule is not None
        if not trainer.is_deepspeed_enabled:  # which has left the rates alone
            schedule.load_state_dict(step.schedule)
            for group, rate in zip(optimizer.param_groups, step.rates, strict=True):
                group["lr"] = rate
        self.skipped += 1
        self.logged = (self.logged[0], self.logged[1] + 1)
        trainer.state.stateful_callbacks[STATE] = {"args": {}, "attributes": {"n": self.skipped}}
        said = self._write(step)
        if trainer.args.non_finite == "stop":
            raise ValueError(
                f"{said}; {self.file} has the rows. The weights are those before the step: go on "
                f"from the last checkpoint with other rows or a lower learning rate, or leave such "
                f"steps out by non_finite=skip"
            )
        logger.warning("%s; the step is left out, see %s", said, self.file)
        steps = -(-(step.number + 1) // UNIT) * UNIT
        if self.skipped > trainer.args.max_non_finite_share * steps:
            raise ValueError(
                f"{self.skipped} of {step.number + 1} steps were not finite, which is more than "
                f"max_non_finite_share={trainer.args.max_non_finite_share}: {self.file} says where"
            )

    def _write(self, step: Step) -> str:
        """Append the step to the file; what to say of it."""
        trainer = self.trainer
        names = bad_parameters(trainer.model)
        rows = rows_of(trainer, step.number)
        mine = []
        for micro, batch in enumerate(step.batches):
            found = replay(
                trainer.model, batch.inputs, step.competing, engine=trainer.model_wrapped
            )
            flags = zip(batch.names, batch.finite_N.tolist(), strict=True)
            mine.append(
                {
                    "rank": trainer.args.process_index,
                    "micro_batch": micro,
                    "rows": rows[micro],
                    "terms": [name for name, finite in flags if not finite],
                    "layer": found.layer,
                    "pass": found.where,
                }
            )
        batches = [batch for each in _gathered(mine) for batch in each]
        wrong = [batch for batch in batches if batch["terms"] or batch["layer"]] or batches
        record = {"step": step.number + 1, "parameters": names, "batches": wrong}
        if trainer.args.should_save:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._write_records([*self._records(), record])
        return _said(record)

    def _records(self) -> list[dict[str, Any]]:
        return json.loads(self.file.read_text()) if self.file.is_file() else []

    def _write_records(self, records: list[dict[str, Any]]) -> None:
        with written_aside(self.file) as partial:
            partial.write_text(json.dumps(records, indent=1))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        known = state.stateful_callbacks.get(STATE, {}).get("attributes", {})
        self.skipped = known.get("n", 0)
        self._batches, self._open, self.logged = [], None, (0, 0)
        if args.should_save and self.file.is_file():  # later steps are done again
            self._write_records([r for r in self._records() if r["step"] <= state.global_step])

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._loss_before = self.trainer._tr_loss.clone()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        summed = self.trainer._tr_loss
        summed.copy_(torch.where(self.bad, self._loss_before, summed))
        self.logged = (self.logged[0] + 1, self.logged[1])
        asked = (control.should_log, control.should_save, control.should_evaluate)
        if any(asked) or control.should_training_stop or self.trainer.is_deepspeed_enabled:
            self.settle()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.settle()


class _Flag:
    """A bool of the device; to read it later waits for nothing that came behind it."""

    def __init__(self, flag: Tensor) -> None:
        self._host = flag.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if flag.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host)


def _check_zero(args: TrainingArguments) -> None:
    """ValueError for a DeepSpeed configuration that would apply a gradient that is not finite."""
    if not args.deepspeed:
        return
    config = args.hf_deepspeed_config
    if config.get_value("zero_optimization.stage", 0) == 0:
        raise ValueError(
            f"deepspeed={args.deepspeed} has no ZeRO stage and takes steps of gradients that are "
            f"not finite: give one of zero_configs, or leave deepspeed out"
        )
    for key in ("bf16.check_grad_overflow", "zero_optimization.compute_grad_norm"):
        if not config.get_value(key, True):
            raise ValueError(
                f"deepspeed={args.deepspeed} says {key}=false and takes steps of gradients that "
                f"are not finite: leave it out"
            )


def _gathered(mine: Any) -> list[Any]:
    """Every rank's object, in their order."""
    if not torch.distributed.is_initialized():
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def _said(record: Mapping[str, Any]) -> str:
    batch = record["batches"][0]
    what = ", ".join(batch["terms"]) or "the gradient"
    where = f", first in the {batch['pass']} of {batch['layer']}" if batch["layer"] else ""
    weights = f", {record['parameters'][0]} holds such a value" if record["parameters"] else ""
    ids = ", ".join(str(row["id"]) for row in batch["rows"][:3])
    return f"step {record['step']}: {what} is not finite{where}{weights} (rows {ids}, ...)"
