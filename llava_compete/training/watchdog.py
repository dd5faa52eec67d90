"""A step that does not end: every rank says where it stands, and the run ends by a code."""

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from transformers import TrainerCallback, TrainerState

from llava_compete.training.launch import report_exit

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

HUNG = 76  # the run's exit code
REPORT = "hang-rank-{}.txt"  # in the output directory, one a rank


class Watchdog(TrainerCallback):
    """While entered, a thread that ends the process when nothing moved for ``timeout`` seconds.

    What moves is the trial save, the beginning or end of a step or a micro-batch, a log and a save.
    Each rank then writes to REPORT and to stderr its rank, host, last sign of life and the stacks
    of its threads, and names the ranks that reported nothing: those are stopped, dead, or out of
    reach. Seconds are counted by the thread's own ticks, so the time in which a scheduler has
    suspended the process is no time. 0 seconds: no thread.
    """

    def __init__(self, trainer: "LlavaTrainer", timeout: float) -> None:
        args = trainer.args
        self.folder = Path(args.output_dir)
        self.rank, self.world_size = args.process_index, args.world_size
        self.timeout = timeout
        self._tick = min(timeout / 10, 5.0)
        self._ticks = 0  # since the last sign of life
        self._last = "the training was started"
        self._stopped = threading.Event()
        trainer.add_callback(self)

    def __enter__(self) -> Self:
        if self.timeout:
            self._report(self.rank).unlink(missing_ok=True)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stopped.set()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._beat("the training began")  # the checkpoint was read, the trial save is done

    def on_step_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self._beat(f"step {state.global_step + 1} began")

    def on_substep_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self._beat(f"a micro-batch of step {state.global_step + 1} was done")

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self._beat(f"step {state.global_step} was done")

    def on_log(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self._beat(f"step {state.global_step} was logged")

    def on_save(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        self._beat(f"step {state.global_step} was saved")

    def _beat(self, what: str) -> None:
        self._last, self._ticks = what, 0

    def _watch(self) -> None:
        while not self._stopped.wait(self._tick):
            self._ticks += 1
            if self._ticks * self._tick > self.timeout:
                self._end()

    def _end(self) -> None:
        try:
            report_exit(HUNG)
            self._say_where()
        finally:  # a full disk takes the report, not the end
            os._exit(HUNG)  # the main thread waits for something that does not come

    def _say_where(self) -> None:
        header = (
            f"rank {self.rank} of {self.world_size} on {socket.gethostname()}, process "
            f"{os.getpid()}: {self._last}, then nothing for step_timeout={self.timeout} s\n"
        )
        _say(sys.stderr, header)
        faulthandler.dump_traceback(sys.stderr)
        with self._report(self.rank).open("w") as file:
            _say(file, header)
            faulthandler.dump_traceback(file)
            # The others' time is up within a tick or two; their stacks are wanted, too.
            time.sleep(2 * self._tick + 1)
            for stream in (sys.stderr, file):
                _say(stream, self._silent())

    def _silent(self) -> str:
        silent = [rank for rank in range(self.world_size) if not self._report(rank).exists()]
        if not silent:
            return "every rank has reported: see at which steps and in which calls they wait\n"
        return f"no report of ranks {silent}: stopped, dead or out of reach, the others wait\n"

    def _report(self, rank: int) -> Path:
        return self.folder / REPORT.format(rank)


def _say(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def check_step_timeout(step_timeout: float, ddp_timeout: float) -> None:
    """ValueError for a time that is none, or one that the communication library never waits for."""
    if not 0 <= step_timeout < ddp_timeout:
        raise ValueError(
            f"step_timeout={step_timeout} must be 0 (never) or less than ddp_timeout={ddp_timeout}"
            f", or the watchdog comes too late: give a smaller one, or a larger ddp_timeout"
        )
