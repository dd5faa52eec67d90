"""What a checkpoint of transformers leaves out: what the log has summed up since its last line.

Without it a run that goes on from a save between two log lines would log other losses than the
undisturbed one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

FILE = "progress_{}.json"  # in a checkpoint, one a rank; JSON keeps every bit of a float


class Progress(TrainerCallback):
    """Written with each checkpoint, read where a training begins with one.

    It is the last callback: others begin anew where a training begins. A checkpoint of another
    number of ranks is shared out: rank 0 takes the sums of all, so that the next log line is the
    same to rounding.
    """

    def __init__(self, trainer: "LlavaTrainer") -> None:
        self.trainer = trainer
        self.checkpoint: Path | None = None  # to go on from; set before the training begins

    def write(self, folder: Path) -> None:
        """This rank's file in the checkpoint ``folder``."""
        trainer = self.trainer
        values = {
            "max_steps": trainer.state.max_steps,
            "loss": trainer._tr_loss.item(),
            "all_losses": trainer._total_loss_scalar,
            "last_log": trainer._globalstep_last_logged,
            "step_seconds": trainer._timer.seconds,
            "finite": trainer._finite.logged,
            "seen": {name: _plain(noted) for name, noted in trainer._seen.items()},
        }
        (folder / FILE.format(trainer.args.process_index)).write_text(json.dumps(values))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer._seen.clear()
        self.trainer._timer.seconds.clear()
        if self.checkpoint is None:
            return
        if state.global_step > state.max_steps:
            raise ValueError(
                f"{self.checkpoint} is of step {state.global_step}, and the recipe ends at step "
                f"{state.max_steps}: raise max_steps or num_train_epochs, or resume from an "
                f"earlier checkpoint"
            )
        # transformers goes on with the intervals of the checkpoint's recipe.
        state.compute_steps(args, state.max_steps)
        files = sorted(self.checkpoint.glob(FILE.format("*")))
        ranks = [json.loads(file.read_text()) for file in files]
        if len(ranks) == args.world_size:
            mine = json.loads((self.checkpoint / FILE.format(args.process_index)).read_text())
        else:
            mine = _share(ranks, first=args.process_index == 0)
        self._restore(mine, state)

    def _restore(self, values: dict[str, Any], state: TrainerState) -> None:
        trainer, device = self.trainer, self.trainer.args.device
        trainer._tr_loss.fill_(values["loss"])
        trainer._total_loss_scalar = values["all_losses"]
        trainer._globalstep_last_logged = values["last_log"]
        trainer._timer.seconds.extend(values["step_seconds"])
        trainer._finite.logged = tuple(values["finite"])
        for name, (numbers, weights) in values["seen"].items():
            tensors = torch.tensor(numbers, device=device).unbind()
            trainer._seen[name] = list(zip(tensors, weights, strict=True))
        if values["max_steps"] != state.max_steps:
            _follow_schedule(trainer.lr_scheduler)


def _plain(noted: list[tuple[Tensor, int]]) -> tuple[list[float], list[int]]:
    numbers = torch.stack([value.float() for value, _ in noted]).tolist()
    return numbers, [weight for _, weight in noted]


def _share(ranks: list[dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """The files of all ranks as one of another number: their mean loss, their sums on rank 0.

    The other ranks have the same names with a value that does not count.
    """
    seen = {
        name: [
            [value for rank in ranks for value in rank["seen"][name][0]],
            [weight for rank in ranks for weight in rank["seen"][name][1]],
        ]
        for name in ranks[0]["seen"]
    }
    loss = sum(rank["loss"] for rank in ranks) / len(ranks)
    nothing = {name: [[float("nan")], [1]] for name in seen}
    return {**ranks[0], "loss": loss, "seen": seen if first else nothing}


def _follow_schedule(schedule: Any) -> None:
    """The next step's rates by the schedule of the new length, not by that of the checkpoint."""
    if not isinstance(schedule, LambdaLR):
        return
    rates = [
        base * rule(schedule.last_epoch)
        for base, rule in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
