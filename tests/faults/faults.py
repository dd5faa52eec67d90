"""The faults: each disturbs a training and checks what the disturbed start did.

A fault gets a ``Case``, starts its training and says whether it met it: a training may be done
before the moment comes.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from llava_compete.training.output import CHECKPOINT
from llava_compete.training.preemption import PREEMPTED
from llava_compete.training.watchdog import HUNG, REPORT
from tests.faults import hooks
from tests.faults.runs import SAVE_STEPS, STEPS, Hook, Run, Setup

KILLED = -signal.SIGKILL
STEP_TIMEOUT = 4.0  # seconds, at the least, where a rank hangs
MOUNT = ["mount", "-t", "tmpfs", "-o", "size=64m", "none"]  # the file system that is filled


@dataclass
class Case:
    """One training that is to be disturbed."""

    setup: Setup
    recipe: Path
    images: Path
    output: Path
    seconds: float  # that the undisturbed run takes
    rng: random.Random

    def start(self, *flags: str, hooks: dict[int, Hook] | None = None) -> Run:
        return Run(self.setup, self.recipe, self.output, *flags, hooks=hooks)

    def any_rank(self) -> bool:
        return self.rng.randrange(self.setup.world)

    def checkpoints(self) -> list[Path]:
        """Those that have their final name, the newest last."""
        found = [p for p in self.output.glob("*") if CHECKPOINT.fullmatch(p.name)]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def sleep_into(self, run: Run) -> None:
        """Until a random moment of the run, or its end."""
        until = run.begun + self.rng.uniform(0.1, 1.1) * self.seconds
        while run.alive() and time.monotonic() < until:
            time.sleep(0.005)


def kill_all(case: Case) -> bool:
    """kill -9 of every rank at a random moment."""
    run = case.start()
    case.sleep_into(run)
    killed = run.alive()
    for rank in killed:
        rank.kill()
    run.wait()
    return bool(killed)


def kill_one(case: Case) -> bool:
    """kill -9 of one rank at a random moment."""
    run = case.start()
    case.sleep_into(run)
    victim = run.ranks[case.any_rank()]
    victim.kill()
    return KILLED in run.wait()


def kill_in_save(case: Case) -> bool:
    """kill -9 of one rank between two file operations of a save."""
    run = case.start(hooks={case.any_rank(): hooks.in_save(case.rng.randint(1, 60))})
    return KILLED in run.wait()


def kill_in_loading(case: Case) -> bool:
    """kill -9 of one rank while a row is read."""
    run = case.start(hooks={case.any_rank(): hooks.in_loading(case.rng.randint(1, STEPS))})
    return KILLED in run.wait()


def preempt(number: signal.Signals, case: Case) -> bool:
    """SIGTERM or SIGUSR1 to one rank, or to all with their loaders' workers, in the training."""
    run = case.start()
    while run.alive() and not (case.output / f"checkpoint-{SAVE_STEPS}").exists():
        time.sleep(0.002)
    time.sleep(case.rng.uniform(0, 0.05) * case.seconds)
    if case.rng.random() < 0.5:
        pids = [run.ranks[case.any_rank()].pid]
    else:  # a scheduler signals every process of a job
        pids = [process.pid for process in psutil.Process().children(recursive=True)]
    signalled = [_signal(pid, number) for pid in pids]
    codes = run.wait()
    if set(codes) == {0} or set(codes) & {-number}:  # behind the last step
        return False
    assert set(codes) == {PREEMPTED}, f"{number.name} ends by {codes}:\n{run.said()}"
    return any(signalled)


def _signal(pid: int, number: signal.Signals) -> bool:
    """False where the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def sigterm(case: Case) -> bool:
    return preempt(signal.SIGTERM, case)


def sigusr1(case: Case) -> bool:
    return preempt(signal.SIGUSR1, case)


def damage(case: Case, harm: Callable[[Path], None]) -> bool:
    """Kill all in the training's second half, then harm a file of the newest checkpoint."""
    run = case.start()
    while run.alive() and not (case.output / f"checkpoint-{2 * SAVE_STEPS}").exists():
        time.sleep(0.002)
    for rank in run.alive():
        rank.kill()
    run.wait()
    newest = case.checkpoints()[-1]
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    harm(case.rng.choice(files))
    return True


def truncated(case: Case) -> bool:
    def harm(file: Path) -> None:
        os.truncate(file, case.rng.randrange(file.stat().st_size))

    return damage(case, harm)


def bit_flipped(case: Case) -> bool:
    def harm(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
        file.write_bytes(data)

    return damage(case, harm)


def missing(case: Case) -> bool:
    return damage(case, Path.unlink)


def can_mount(folder: Path) -> bool:
    """May this process mount a tmpfs? A container may be forbidden to."""
    place = folder / "mounted"
    place.mkdir(exist_ok=True)
    if subprocess.run([*MOUNT, str(place)], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def full_disk(case: Case) -> bool:
    """The file system of the output, a tmpfs, has no byte left from a step on."""
    case.output.mkdir()
    subprocess.run([*MOUNT, str(case.output)], check=True)
    try:
        filled = hooks.at_step(case.rng.randint(3, STEPS - 2), hooks.fill_disk(case.output))
        run = case.start(hooks={0: filled})
        codes = run.wait()
        assert not set(codes) & {0}, f"a full disk ends by {codes}:\n{run.said()}"
        (case.output / "filler").unlink()
        kept = case.output.with_name(f"{case.output.name}-kept")
        shutil.copytree(case.output, kept)
    finally:
        subprocess.run(["umount", str(case.output)], check=True)
    case.output.rmdir()
    kept.rename(case.output)
    return True


def rank_hangs(case: Case) -> bool:
    """One of several ranks is stopped by SIGSTOP, a single one sleeps: the watchdog ends them."""
    hung = case.any_rank()
    alone = case.setup.world == 1
    hook = hooks.at_step(case.rng.randint(2, STEPS - 1), hooks.sleep if alone else hooks.stop)
    patience = max(STEP_TIMEOUT, 2 * case.seconds)  # beside other work even a healthy step waits
    run = case.start("--step_timeout", str(patience), hooks={hung: hook})
    codes = run.wait(patience=2.0)
    others = [rank for rank in range(case.setup.world) if alone or rank != hung]
    assert all(codes[rank] == HUNG for rank in others), f"ends by {codes}:\n{run.said()}"
    report = (case.output / REPORT.format(others[0])).read_text()
    assert f"rank {others[0]} of {case.setup.world}" in report, report
    assert alone or f"no report of ranks [{hung}]" in report, report
    return True


def nan_weight(case: Case) -> bool:
    """A NaN in a weight of one rank: the run stops, and no checkpoint has it."""
    hook = hooks.nan_at_step(case.rng.randint(2, STEPS - 1))
    run = case.start(hooks={case.any_rank(): hook})
    codes = run.wait()
    assert not set(codes) & {0}, f"a NaN ends by {codes}:\n{run.said()}"
    assert (case.output / "non_finite.json").exists(), run.said()
    return True


def image_gone(case: Case) -> bool:
    """The pictures disappear before the second step; the run stops by naming a row."""
    away = case.images.with_name("away")
    run = case.start(hooks={0: hooks.at_step(2, lambda: case.images.rename(away) and None)})
    codes = run.wait()
    away.rename(case.images)
    assert not set(codes) & {0}, f"pictures that are gone end by {codes}:\n{run.said()}"
    assert "row-" in run.said(), run.said()
    return True


KILLS = (kill_all, kill_one, kill_in_save, kill_in_loading)
OTHERS = (
    sigterm,
    sigusr1,
    truncated,
    bit_flipped,
    missing,
    full_disk,
    rank_hangs,
    nan_weight,
    image_gone,
)
