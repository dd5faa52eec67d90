"""Run a launcher so that signals reach its ranks and their exit code reaches the caller.

    python -m llava_compete.training.launch torchrun --nproc-per-node 8 -m llava_compete train ...

torchrun ends with 1 whatever code its ranks end with, and dies of SIGUSR1; deepspeed dies of
SIGTERM and leaves its ranks behind. Here SIGTERM and SIGUSR1 go to the ranks alone, and the code is
the one that a rank has reported.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

EXIT_FILE = "LLAVA_COMPETE_EXIT_FILE"  # environment variable: where a rank writes its exit code
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # which are handed on


def report_exit(code: int) -> None:
    """Tell ``launch``, if it is there, by which code this rank is about to end."""
    if EXIT_FILE in os.environ:
        Path(os.environ[EXIT_FILE]).write_text(str(code))


def launch(command: Sequence[str]) -> int:
    """The exit code of a launcher's ranks: as one of them reported it, else the launcher's own.

    A launcher that dies of a signal has the code that a shell gives it, 128 + the signal.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code"
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they wait until forward is there
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the launcher inherits that
        environment = {**os.environ, EXIT_FILE: str(file)}
        launcher = subprocess.Popen(command, env=environment, preexec_fn=_unblock)

        def forward(number: int, _: FrameType | None) -> None:
            running = _running(launcher.pid)
            for one in _ranks(running) or running:
                with suppress(psutil.NoSuchProcess):  # it has ended by now
                    one.process.send_signal(number)

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the launcher, too
        for number in SIGNALS:
            signal.signal(number, forward)
        _unblock()
        code = launcher.wait()
        if code and file.exists():
            return int(file.read_text())
    return code if code >= 0 else 128 - code


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class Running(NamedTuple):
    """A process and what was asked of it while it ran."""

    process: psutil.Process
    parent: int
    has_rank: bool


def _running(pid: int) -> list[Running]:
    """The launcher and all processes below it that have not ended."""
    found: list[Running] = []
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(pid)
        for process in (launcher, *launcher.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # a zombie is one, too
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(Running(process, process.ppid(), "RANK" in process.environ()))
    return found


def _ranks(running: list[Running]) -> list[Running]:
    """Those that a launcher has given a RANK; loader workers, which inherit it, are left out."""
    with_rank = {one.process.pid for one in running if one.has_rank}
    return [one for one in running if one.has_rank and one.parent not in with_rank]


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
