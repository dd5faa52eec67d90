"""A machine that is taken away: save at the next step boundary on all ranks, leave by a code.

SIGTERM or SIGUSR1 to any rank asks for it. After every optimizer step the ranks ask each other, by
one number over gloo and between their hosts, so that no device is waited for; where any was asked,
all of them save that step and end with code PREEMPTED.
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_compete.training.launch import report_exit

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, run it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ECHO_SECONDS = 3.0  # a signal so soon behind the first is the same one: a launcher hands it on, too


class Preemption(TrainerCallback):
    """Listens while it is entered; ``leave`` ends the process where the ranks have agreed to.

    A second signal, later than ECHO_SECONDS, ends the process at once, by that signal. Signals
    outside, before the first step and after the last, do what they do to any process: nothing is
    there that a save would keep.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self.agreed = False  # all ranks save this step and leave; set at a step's end
        self._asked_at: float | None = None  # when this rank's first signal came
        self._group: Any = None  # a ProcessGroup of several ranks
        self._before: dict[signal.Signals, Any] = {}  # handlers; empty: not entered

    def __enter__(self) -> Self:
        self.agreed, self._asked_at = False, None
        if self.args.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # The first rank to leave makes a launcher end the others, which are leaving anyway.
            signal.signal(number, signal.SIG_IGN if self.agreed and not error else handler)
        self._before = {}

    def _take(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            name = signal.Signals(number).name
            message = f"{name}: saving at the end of this step, then leaving by code {PREEMPTED}\n"
            os.write(2, message.encode())  # a print may be under way
        elif now - self._asked_at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._before:
            return
        asked = torch.tensor([self._asked_at is not None], dtype=torch.int32)
        if self._group is not None:
            dist.all_reduce(asked, dist.ReduceOp.MAX, self._group)
        if asked.item():
            self.agreed = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.agreed:  # the epoch has not ended, the run has
            control.should_save = control.should_log = False

    def leave(self) -> None:
        """SystemExit with code PREEMPTED where the ranks have agreed, when all have saved."""
        if not self.agreed:
            return
        if self._group is not None:
            dist.barrier(self._group)
        report_exit(PREEMPTED)
        raise SystemExit(PREEMPTED)


def heed_the_rank_alone() -> None:
    """In a loader's worker: SIGNALS end it where its rank sends them, and pass where others do.

    A scheduler signals every process of a job. A worker that dies of it takes its rank along before
    the step's end. Only the rank may: it joins its workers behind such a signal when it ends.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_the_rank, args=(os.getppid(),), daemon=True).start()


def _end_with_the_rank(rank: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != rank:
        pass
    os._exit(0)
