"""python -m experiments sample_efficiency --out DIR [--quick] [--seed 0] [--workers N]"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def _log_grid(low: int, high: int, count: int) -> tuple[int, ...]:
    return tuple(int(size) for size in np.geomspace(low, high, count).round())


FULL_SIZES, FULL_REPEATS = _log_grid(100, 100_000, 10), 40
QUICK_SIZES, QUICK_REPEATS = _log_grid(100, 10_000, 5), 12


def main(argv: Sequence[str]) -> None:
    """Run the study and leave ``report.FILES`` in the output directory."""
    parser = _parser()
    args = parser.parse_args(argv)

    from experiments.sample_efficiency.report import FILES, write
    from experiments.sample_efficiency.study import Plan, run

    sizes = QUICK_SIZES if args.quick else FULL_SIZES
    repeats = QUICK_REPEATS if args.quick else FULL_REPEATS
    try:
        plan = Plan(sizes=sizes, repeats=repeats, mass_range=args.mass_range, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: at least one process has to do the work")
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, plan, run(plan, args.workers))
    print((args.out / "results.md").read_text())
    print("\n".join(str(args.out / name) for name in FILES))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments sample_efficiency",
        description="Rates of maximum likelihood under the softmax gate and under competition.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="for results.md, figure and numbers"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{len(QUICK_SIZES)} sizes up to {QUICK_SIZES[-1]} and {QUICK_REPEATS} repeats, not "
        f"{len(FULL_SIZES)} up to {FULL_SIZES[-1]} and {FULL_REPEATS}",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; one a core"
    )
    parser.add_argument(
        "--mass_range",
        type=float,
        default=2.0,
        help="factor within which an extra expert's mass stays of half a true one's (default 2)",
    )
    return parser
