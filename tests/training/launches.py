"""Processes that tests start: one, or several by torchrun."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.training.recipes import logged_steps

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun() -> list[str]:
    """Two processes; the module's name and words follow."""
    module = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*module, "--master-port", str(free_port()), "-m"]


def run(
    command: Sequence[str], *, fails: bool = False, threads: int = 1, timeout: int = 600
) -> subprocess.CompletedProcess[str]:
    """The command, at its end; it has to fail where ``fails`` says so."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def launch(module: str, words: Sequence[str], *, processes: int, **how: Any) -> str:
    """What ``python -m module words`` says, in one process or two; ``how`` as of ``run``."""
    launcher = [sys.executable, "-m"] if processes == 1 else torchrun()
    done = run([*launcher, module, *words], **how)
    return done.stdout + done.stderr


def train(
    launcher: Sequence[str], recipe: str | Path, output: Path, *flags: str, threads: int = 1
) -> list[dict[str, Any]]:
    """Train as a user does; the log, step by step."""
    words = ["llava_compete", "train", str(recipe), "--output_dir", str(output), *flags]
    run([*launcher, *words], threads=threads)
    return logged_steps(output)
