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
from pathlib import Path
from types import FrameType

import psutil

EXIT_FILE = "LLAVA_COMPETE_EXIT_FILE"  # environment variable: where a rank writes its exit code


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
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the launcher inherits that
        launcher = subprocess.Popen(command, env={**os.environ, EXIT_FILE: str(file)})

        def forward(number: int, _: FrameType | None) -> None:
            below = _alive(launcher.pid)
            for process in _ranks(below) or below:
                process.send_signal(number)

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the launcher, too
        signal.signal(signal.SIGTERM, forward)
        signal.signal(signal.SIGUSR1, forward)
        code = launcher.wait()
        if code and file.exists():
            return int(file.read_text())
    return code if code >= 0 else 128 - code


def _alive(pid: int) -> list[psutil.Process]:
    """The launcher and all processes below it that are not dead."""
    launcher = psutil.Process(pid)
    found = [launcher, *launcher.children(recursive=True)]
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def _ranks(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that a launcher has given a RANK; loader workers, which inherit it, are left out."""
    with_rank = {process.pid for process in processes if "RANK" in process.environ()}
    return [p for p in processes if p.pid in with_rank and p.ppid() not in with_rank]


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
