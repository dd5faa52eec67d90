"""Tiny trainings of a second or two, each rank a process forked from this one.

Importing torch, transformers and DeepSpeed takes longer than the training: it is done once, here.
Ranks are started as srun starts them: RANK, WORLD_SIZE and MASTER_PORT, no launcher between.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import yaml
from tqdm import tqdm

import tests.training.imports  # noqa: F401 (the children have it by then)
from llava_compete.__main__ import main
from llava_compete.moe.upcycle import PARTS
from tests import tiny
from tests.training.launches import REPOSITORY, free_port

STAGES = (1, 2, 3)
ZEROS = ("none", "zero1", "zero2", "zero3")
WORLDS = (1, 2)
STEPS, SAVE_STEPS, LOG_STEPS = 8, 2, 3  # saves and logs do not fall together
ROWS = 20
LIMIT = 120.0  # seconds; a run that takes longer hangs

Hook = Callable[[], None]
fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Setup:
    """One training: a stage of the recipe, a ZeRO level, a number of processes."""

    stage: int
    zero: str
    world: int

    def __str__(self) -> str:
        return f"stage{self.stage}-{self.zero}-{self.world}p"


def write_recipes(root: Path) -> dict[int, Path]:
    """A recipe for each stage; data, order and trained parts differ as in the real three."""
    dense = tiny.make_checkpoint(root / "dense", moe=False)
    moe = tiny.make_checkpoint(root / "moe", parts=PARTS, perturbation=1.0)
    rows, images = tiny.write_rows(root, n=ROWS, text_only=range(1, ROWS, 4))
    own = {
        1: {"checkpoint": dense, "trainable": ["projector"]},
        2: {
            "checkpoint": dense,
            "trainable": ["vision", "projector", "language_model"],
            "batching": "length_grouped",
            "dataloader_num_workers": 1,
        },
        3: {
            "checkpoint": moe,
            "trainable": ["vision", "projector", "language_model"],
            "competition_rate": 0.5,
            "competition_warmup": 1,
            "batching": "packed",
            "max_length": 256,
        },
    }
    recipes = {}
    for stage, values in own.items():
        recipe = {
            "data_path": rows,
            "image_folder": images,
            "output_dir": root / "unused",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2 if stage == 2 else 1,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "cosine",
            "logging_steps": LOG_STEPS,
            "save_steps": SAVE_STEPS,
            "save_total_limit": 3,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "resume": "auto",
            **values,
        }
        text = {k: str(v) if isinstance(v, Path) else v for k, v in recipe.items()}
        recipes[stage] = root / f"stage{stage}.yaml"
        recipes[stage].write_text(yaml.safe_dump(text))
    return recipes


class Run:
    """The ranks of one start of a training; their output goes to ``log``-rank-R.txt."""

    def __init__(
        self,
        setup: Setup,
        recipe: Path,
        output: Path,
        *flags: str,
        hooks: dict[int, Hook] | None = None,
    ) -> None:
        argv = ["train", str(recipe), "--output_dir", str(output), *flags]
        if setup.zero != "none":
            argv += ["--deepspeed", str(REPOSITORY / "zero_configs" / f"{setup.zero}.json")]
        self.port = free_port()
        self.begun = time.monotonic()
        self.ranks: list[ForkProcess] = []
        self.logs = []
        for rank in range(setup.world):
            self.logs.append(output.with_name(f"{output.name}-rank-{rank}.txt"))
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(setup.world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
            }
            hook = (hooks or {}).get(rank)
            arguments = (argv, environment, self.logs[-1], hook)
            self.ranks.append(fork.Process(target=_be_a_rank, args=arguments))
            self.ranks[-1].start()

    def alive(self) -> list[ForkProcess]:
        return [rank for rank in self.ranks if rank.is_alive()]

    def wait(self, patience: float = 10.0) -> list[int | None]:
        """Exit codes; ranks left by one that failed are killed after ``patience`` seconds.

        That is what a launcher does. AssertionError where none has ended by LIMIT.
        """
        failed_at: float | None = None
        while alive := self.alive():
            now = time.monotonic()
            if failed_at is None and any(rank.exitcode for rank in self.ranks):
                failed_at = now
            if failed_at is not None and now - failed_at > patience:
                for rank in alive:
                    rank.kill()
            if now - self.begun > LIMIT:
                for rank in alive:
                    rank.kill()
                raise AssertionError(f"hangs:\n{self.said()}")
            time.sleep(0.02)
        for left in Path("/dev/shm").glob(f"deepspeed_*_{self.port}_*"):
            left.unlink()  # 66 MiB of memory that a killed rank leaves: DeepSpeed's, on CPU
        return [rank.exitcode for rank in self.ranks]

    def said(self) -> str:
        """The end of each rank's output."""
        return "\n".join(
            f"--- rank {rank}\n{log.read_text()[-3000:]}" for rank, log in enumerate(self.logs)
        )


def _be_a_rank(argv: list[str], environment: dict[str, str], log: Path, hook: Hook | None) -> None:
    os.environ.update(environment)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    # All forks share tqdm's own lock: a rank killed while it held that would stop all that follow.
    tqdm.set_lock(threading.RLock())
    if hook is not None:
        hook()
    main(argv)
