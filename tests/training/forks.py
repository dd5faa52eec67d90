"""Ranks as forks of a server that has imported everything: an import takes longer than a training.

``python -m module words`` and torchrun do what ``be_ranks`` does; test_launch.py and test_zero.py
start those. The server is one for each process of pytest, and ends with it.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 10.0  # seconds that ranks have once one has failed, as a launcher ends them

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.training.imports"])


def be_ranks(
    module: str,
    words: Sequence[str],
    environments: Sequence[dict[str, str]],
    *,
    timeout: float = 600,
) -> tuple[list[int | None], str]:
    """Exit codes and output of ``python -m module words``, once in each environment at a time."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank-{rank}.txt") for rank in range(len(environments))]
        ranks = [
            server.Process(target=_be_a_rank, args=(module, list(words), environment, log))
            for environment, log in zip(environments, logs, strict=True)
        ]
        try:
            for rank in ranks:
                rank.start()
            _wait(ranks, timeout)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        said = "\n".join(log.read_text() for log in logs if log.exists())
        return [rank.exitcode for rank in ranks], said


def _wait(ranks: Sequence[multiprocessing.process.BaseProcess], timeout: float) -> None:
    """Until all have ended, ``timeout`` seconds are over, or PATIENCE since one has failed."""
    until = time.monotonic() + timeout
    while alive := [rank.sentinel for rank in ranks if rank.is_alive()]:
        if any(rank.exitcode for rank in ranks):
            until = min(until, time.monotonic() + PATIENCE)
        if not connection.wait(alive, until - time.monotonic()):
            return


def _be_a_rank(module: str, words: list[str], environment: dict[str, str], log: Path) -> None:
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
