"""Rows whose images broke while training: written down, counted, and refused past a share."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_compete.data.aside import written_aside

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

SKIPPED = "skipped.jsonl"  # in the output directory, one broken row a line
STATE = "skipped_rows"  # its place in the trainer's state
UNIT = 1000  # a share is of whole thousands of rows drawn, of whole epochs where they are shorter


class Counts(NamedTuple):
    """Rows since the training began, of all ranks and of the starts before a resume."""

    skipped: int = 0
    drawn: int = 0


class SkippedRows(TrainerCallback):
    """Takes ``skipped`` out of the batches (LlavaDataset, ``broken_images="skip"``).

    Each record is appended to SKIPPED at once, with its step and rank. The counts are summed over
    the ranks before a log and a save, and stand in the trainer's state, so that a resumed run goes
    on with them. ValueError where more than ``max_share`` of the rows drawn were skipped: on one
    rank at once, over all of them at the next log or save. The rows drawn are rounded up to whole
    UNITs, so that one broken row in the first batch ends no run.
    """

    def __init__(self, trainer: "LlavaTrainer", max_share: float) -> None:
        self.trainer = trainer
        self.max_share = max_share
        self.file = Path(trainer.args.output_dir) / SKIPPED
        self.unit = min(UNIT, len(trainer.train_dataset))
        self.total = Counts()  # as of the last sum over the ranks
        self._before = Counts()  # a resumed run's
        self._skipped = 0  # by this rank since it began
        self._drawn: Tensor | int = 0  # a tensor where rows are packed: counted on the device

    def take(self, batch: dict[str, Any], step: int) -> None:
        """Remove ``skipped`` from a batch of optimizer step ``step``; count its rows."""
        self._drawn = self._drawn + _rows(batch)
        records = batch.pop("skipped", [])
        if not records:
            return
        self._skipped += len(records)
        lines = "".join(
            json.dumps({"step": step, "rank": self.trainer.args.process_index, **record}) + "\n"
            for record in records
        )
        # One write at the file's end: ranks do not cut into each other's lines.
        opened = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(opened, lines.encode())
        finally:
            os.close(opened)
        self._refuse_too_many(Counts(self._skipped, int(self._drawn)))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._before = Counts(**state.stateful_callbacks.get(STATE, {}).get("attributes", {}))
        self._skipped, self._drawn = 0, 0
        if args.should_save:
            self._forget_after(state.global_step)
        self._sum_up(state)  # the other ranks wait here

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The trainer's own callback comes first and has said so, alike on each rank.
        if control.should_log or control.should_save or control.should_training_stop:
            self._sum_up(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.on_step_end(args, state, control)

    def _forget_after(self, step: int) -> None:
        """Remove the records of later steps, which are done again, and a line that was cut."""
        if not self.file.is_file():
            return
        lines = self.file.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        with written_aside(self.file) as partial:
            partial.write_text("".join(ln for ln in whole if json.loads(ln)["step"] <= step))

    def _sum_up(self, state: TrainerState) -> None:
        mine = torch.tensor([self._skipped, int(self._drawn)], device=self.trainer.args.device)
        skipped, drawn = self.trainer.accelerator.reduce(mine, reduction="sum").tolist()
        self.total = Counts(self._before.skipped + skipped, self._before.drawn + drawn)
        state.stateful_callbacks[STATE] = {"args": {}, "attributes": self.total._asdict()}
        self._refuse_too_many(self.total)

    def _refuse_too_many(self, counts: Counts) -> None:
        units = -(-counts.drawn // self.unit)
        if counts.skipped > self.max_share * units * self.unit:
            raise ValueError(
                f"{counts.skipped} of {counts.drawn} rows drawn had a broken image, which is more "
                f"than max_skipped_share={self.max_share}: {self.file} names them; fetch the "
                f"images again, exclude the rows (`python -m data_prep check --drop`) or allow more"
            )


def _rows(batch: dict[str, Any]) -> Tensor | int:
    """Rows of a batch; those of a packed one are counted where they lie."""
    if "packing" not in batch:
        return len(batch["input_ids"])
    starts_Q = batch["packing"].starts_Q[:-1]
    return batch["attention_mask"].flatten()[starts_Q.long()].sum()  # padding has a start, too
