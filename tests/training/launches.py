"""Processes that tests start: commands, and ranks of a module."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.training.forks import REPOSITORY, be_ranks
from tests.training.recipes import logged_steps


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun() -> list[str]:
    """Two processes; the module's name and words follow."""
    module = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*module, "--master-port", str(free_port()), "-m"]


def environment() -> dict[str, str]:
    """Of a command: programs of this Python's folder, one thread, no network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path}


def run(command: Sequence[str], *, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """The command, at its end, which has to be a good one."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def launch(
    module: str,
    words: Sequence[str],
    *,
    processes: int,
    fails: bool = False,
    timeout: float = 600,
) -> str:
    """What ``python -m module words`` says, in one process or as ranks; as forks, see forks.py.

    It has to fail where ``fails`` says so.
    """
    environments = [environment() for _ in range(processes)]
    if processes > 1:
        ranks = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank, own in enumerate(environments):
            own |= {**ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    codes, said = be_ranks(module, words, environments, timeout=timeout)
    assert any(codes) == fails, f"{codes}\n{said[-9000:]}"
    return said


def train(
    recipe: str | Path, output: Path, *flags: str, processes: int = 2
) -> list[dict[str, Any]]:
    """Train in so many processes; the log, step by step."""
    words = ["train", str(recipe), "--output_dir", str(output), *flags]
    launch("llava_compete", words, processes=processes)
    return logged_steps(output)


def train_by(
    launcher: Sequence[str], recipe: str | Path, output: Path, *flags: str
) -> list[dict[str, Any]]:
    """Train as a user does; the log, step by step."""
    words = ["llava_compete", "train", str(recipe), "--output_dir", str(output), *flags]
    run([*launcher, *words])
    return logged_steps(output)
