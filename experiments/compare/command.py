"""python -m experiments compare --recipe RECIPE --tasks NAMES --data_root DIR --out DIR [...]"""

import argparse
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.store import Record, write_json

if TYPE_CHECKING:
    from experiments.compare.settings import Comparison

DESCRIPTION = """\
Train routers from one upcycled checkpoint on the same data, steps and seeds, and compare them.
Flags that are not listed here override keys of the recipe: --max_steps 100.
What is done is not done again: the same command goes on where it was stopped.
"""


def main(argv: Sequence[str]) -> None:
    """Measure the costs, run the jobs, and leave a table, a figure and all numbers."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)

    from experiments.compare.settings import Comparison, check, claim
    from llava_compete.moe.routers import ROUTERS

    begun = time.perf_counter()
    try:
        for name in ("workers", "timing_rounds"):
            if getattr(args, name) < 1:
                raise ValueError(f"{name}={getattr(args, name)} must be at least 1")
        comparison = Comparison(
            recipe=(str(args.recipe), *flags),
            routers=tuple(args.routers or ROUTERS),
            seeds=tuple(args.seeds),
            tasks=tuple(args.tasks),
            data_root=args.data_root,
            asked=tuple(args.asked) if args.asked else None,
            limit=args.limit,
            routed=args.routed,
            out=args.out,
            launch=args.launch,
            discard=args.discard_checkpoints,
        )
        check(comparison)
        claim(comparison)
    except ValueError as error:
        parser.error(str(error))
    _compare(comparison, args.workers, args.timing_rounds)
    print(f"{args.out}: report.md, compare.png, compare.json")
    print(f"done in {(time.perf_counter() - begun) / 60:.1f} min")


def _compare(comparison: "Comparison", workers: int, rounds: int) -> None:
    from experiments.compare.report import write
    from experiments.compare.summary import summarise
    from experiments.compare.work import results, run_all

    cost = _cost(comparison, rounds)
    gc.collect()  # the model that was measured
    run_all(comparison, workers, _say)
    found = results(comparison)
    print(write(comparison.out, summarise(found, cost), found, cost))


def _cost(comparison: "Comparison", rounds: int) -> Record:
    """Measured anew where it was not, or not of all routers: they are measured in turn."""
    from experiments.compare.cost import measure

    file = comparison.out / "cost.json"
    if file.is_file():
        held: Record = json.loads(file.read_text())
        if set(comparison.routers) <= held["routers"].keys():
            return held
    found = measure(comparison, rounds, _say)
    write_json(file, found)
    return found


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", type=Path, required=True, help="of every training; router and seed are set")
    add("--routers", type=_names, metavar="A,B", help="default: all in ROUTERS")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data order and fresh gates")
    add("--tasks", type=_names, required=True, metavar="A,B", help="held-out questions, of eval")
    add("--data_root", type=Path, required=True, help="where the questions lie")
    add("--asked", type=_names, metavar="A,B", help="groups of questions to answer; default: all")
    add("--limit", type=int, help="samples taken of each task; default: all")
    add("--routed", type=int, default=32, help="samples of each task whose routing is looked at")
    add("--out", type=Path, required=True, help="for results; what is there is gone on with")
    add("--workers", type=int, default=1, help="jobs at once, each with its share of the cores")
    add("--timing_rounds", type=int, default=3, help="steps of each router that are timed")
    add("--launch", action="store_true", help="train by scripts/train.sh: several GPUs, DeepSpeed")
    add("--discard_checkpoints", action="store_true", help="remove weights that are scored")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")
