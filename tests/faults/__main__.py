"""Disturb tiny trainings, continue them, compare them with undisturbed ones; a table of it.

    python -m tests.faults                      every fault in every stage and ZeRO level
    python -m tests.faults --quick              what CI runs

A kill meets a training again and again, two to five times where that does not end before.

Ends with 1 where a run was lost: it could not be continued, or differs from the undisturbed one.
A full disk needs the right to mount a tmpfs; the table says where it was left out.
"""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

# The libraries read these when they are imported.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline")

from tests.faults.compare import differences
from tests.faults.faults import KILLS, OTHERS, Case, can_mount, full_disk
from tests.faults.runs import STAGES, WORLDS, ZEROS, Run, Setup, write_recipes

Fault = Callable[[Case], bool]
ATTEMPTS = 4  # starts of a case until the fault meets the run, and starts until it is done
QUICK = (Setup(1, "none", 1), Setup(2, "zero3", 1), Setup(3, "zero2", 1), Setup(3, "none", 2))


class Suite:
    """Trainings under ``root``; counts of faults that met their run, and what was lost."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.seed = seed
        self.rng = random.Random(seed)
        os.environ["LLAVA_COMPETE_CACHE"] = str(root / "cache")
        self.recipes = write_recipes(root)
        self.seconds: dict[Setup, float] = {}
        self.met: Counter[tuple[Setup, str]] = Counter()
        self.lost: dict[tuple[Setup, str], str] = {}
        self._count = itertools.count()

    def undisturbed(self, setup: Setup) -> Path:
        """The output of the setup's undisturbed run, made at the first call."""
        output = self.root / f"{setup}-undisturbed"
        if setup not in self.seconds:
            begun = time.monotonic()
            run = Run(setup, self.recipes[setup.stage], output)
            codes = run.wait()
            assert set(codes) == {0}, f"{setup}: {codes}\n{run.said()}"
            self.seconds[setup] = time.monotonic() - begun
        return output

    def disturb(self, setup: Setup, fault: Fault) -> int:
        """Times that the fault met the run: it is lost if it then is not the undisturbed one."""
        undisturbed = self.undisturbed(setup)
        name = f"{setup}-{fault.__name__}-{next(self._count)}"
        case = Case(
            setup,
            self.recipes[setup.stage],
            self.root / "images",
            self.root / name,
            self.seconds[setup],
            random.Random(f"{self.seed}-{name}"),
        )
        met, begun = 0, time.monotonic()
        try:
            for _ in range(ATTEMPTS):
                met = self._meet(case, fault)
                if met:
                    break
                shutil.rmtree(case.output, ignore_errors=True)
            reason = self._finish(case, undisturbed)
        except AssertionError as error:
            met, reason = 1, str(error)
        self.met[setup, fault.__name__] += met
        seconds = time.monotonic() - begun
        print(
            f"{name}: met {met} times, {'LOST' if reason else 'equal'}, {seconds:.1f} s", flush=True
        )
        if reason:
            self.lost[setup, fault.__name__] = f"{name}: {reason}"
        else:
            shutil.rmtree(case.output)
        return met

    def _meet(self, case: Case, fault: Fault) -> int:
        """Times that the fault met the run, a kill again and again until the run got to its end."""
        met = 0
        for _ in range(case.rng.randint(2, 5) if fault in KILLS else 1):
            if not fault(case):
                break
            met += 1
        return met

    def _finish(self, case: Case, undisturbed: Path) -> str:
        """Why the run is lost; empty where it was continued and equals the undisturbed one."""
        run = case.start()
        codes = run.wait()
        if set(codes) != {0}:
            return f"cannot be continued: {codes}\n{run.said()}"
        return "; ".join(differences(case.output, undisturbed)[:5])

    def table(self) -> str:
        """A row for each setup, a column for each fault: times it met the run, or lost."""
        names = [fault.__name__ for fault in (*KILLS, *OTHERS)]
        rows = [["stage", "ZeRO", "processes", *names], ["---"] * (3 + len(names))]
        for setup in sorted({setup for setup, _ in self.met}, key=str):
            cells = [
                "LOST" if (setup, name) in self.lost else str(self.met[setup, name] or "")
                for name in names
            ]
            rows.append([str(setup.stage), setup.zero, str(setup.world), *cells])
        lines = [f"| {' | '.join(row)} |" for row in rows]
        kills = sum(n for (_, name), n in self.met.items() if name in {f.__name__ for f in KILLS})
        lines.append(
            f"\n{self.met.total()} faults, {kills} of them kill -9; {len(self.lost)} cells with a "
            f"lost run"
        )
        return "\n".join(lines)


def run_suite(suite: Suite, disturbances: Sequence[tuple[Fault, Setup]]) -> None:
    for fault, setup in disturbances:
        if fault is full_disk and not can_mount(suite.root):
            print("full_disk: left out, no right to mount a tmpfs")
        else:
            suite.disturb(setup, fault)


def every_cell(rng: random.Random, stages: Sequence[int], rounds: int) -> list[tuple[Fault, Setup]]:
    """Each fault in each stage and ZeRO level, ``rounds`` times, on one process or two."""
    cells = list(itertools.product((*KILLS, *OTHERS), stages, ZEROS)) * rounds
    rng.shuffle(cells)
    return [(fault, Setup(stage, zero, rng.choice(WORLDS))) for fault, stage, zero in cells]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=1, help="times that a fault meets a stage and ZeRO level"
    )
    parser.add_argument("--stages", type=int, nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="each fault once, each in one of four setups"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder of all runs")
    args = parser.parse_args(argv)
    memory = Path("/dev/shm")  # a killed process loses there what it loses on a disk: nothing
    root = Path(
        tempfile.mkdtemp(prefix="llava-compete-faults-", dir=memory if memory.is_dir() else None)
    )
    suite = Suite(root, args.seed)
    if args.quick:
        run_suite(suite, [(fault, suite.rng.choice(QUICK)) for fault in (*KILLS, *OTHERS)])
    else:
        run_suite(suite, every_cell(suite.rng, args.stages, args.rounds))
    print(suite.table())
    for reason in suite.lost.values():
        print(reason)
    if not args.keep and not suite.lost:
        shutil.rmtree(root)
    return bool(suite.lost)


if __name__ == "__main__":
    sys.exit(main())
