"""The MoE layer against a loop over experts, transformers' experts, and the matrix products alone.

python -m benchmarks moe --only "bfloat16 512/1408 (4, 2)"
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceiling import Floor, ceiling, rates
from benchmarks.measure import CLOCKS, Laps, interleaved, machine, paired, summary, table, write
from benchmarks.moe_cases import (
    BASE,
    CANDIDATES,
    COMPILED_WIDTH,
    Case,
    cases,
    prepared,
    source,
    with_options,
)
from benchmarks.moe_curves import curves, draw
from benchmarks.moe_memory import child, held_and_peaks
from benchmarks.moe_tables import (
    CAP,
    FLOOR,
    LAYERS,
    RATE,
    amortised_rows,
    curve_rows,
    markdown,
    memory_rows,
    rate_rows,
    speed_rows,
)
from benchmarks.steps import Seconds, Step, group_sizes

PARTS = ("ceiling", "speed", "memory", "amortised", "curves")
CEILING = "ceiling"


def main(argv: Sequence[str]) -> None:
    args = _parse(argv)
    if args.tables is not None:
        print(markdown(json.loads(args.tables.read_text())))
        return
    # A case with many group sizes has more kernels than oneDNN keeps by default (1024), and would
    # compile them in each round. Read by oneDNN when it first runs.
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "65536"
    torch.set_num_threads(args.threads)
    Laps.clock = staticmethod(CLOCKS[args.clock])
    if args.child is not None:
        print(f"PEAK {child(*args.child)}")
        return
    device = torch.device(args.device)
    chosen = [case for case in cases(quick=args.quick) if args.only in case.name]
    if not chosen:
        names = "\n".join(case.name for case in cases(quick=args.quick))
        raise ValueError(f"--only {args.only!r} is in no case's name; the cases are\n{names}")
    results: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "clock": args.clock}
    for part in args.parts:
        results[part] = {}
        for name, found, shown in _measure(part, chosen, device, args):
            results[part][name] = found
            write(args.output, results)
            print(f"\n{name}\n{shown}", flush=True)
    print(f"\n{args.output}: {args.rounds} rounds, {results['machine']}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks moe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--only", default="", help="cases whose name has this; their names head the tables")
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--clock", choices=CLOCKS, default="wall", help="processor: on a busy machine, one thread")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--quick", action="store_true", help="small layers, to see that all works")
    add("--output", type=Path, default=Path("outputs/benchmarks/moe.json"))
    add("--figure", type=Path, default=Path("outputs/benchmarks/moe.png"), help="of the curves")
    add("--tables", type=Path, help="a run's --output: print its tables in Markdown, run nothing")
    add("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(
    part: str, chosen: Sequence[Case], device: torch.device, args: argparse.Namespace
) -> Iterable[tuple[str, Any, str]]:
    """A name, its figures and their table, one after the other."""
    if part == "curves":
        found = curves(device, args.rounds, quick=args.quick)
        draw(found, args.figure)
        for name, curve in found.items():
            yield name, curve, table(curve_rows(name, curve))
        return
    for case in chosen:
        if part == "ceiling":
            found = rates(case, device, args.rounds)
            yield case.name, found, table(rate_rows(found))
        elif part == "speed":
            found = speed(case, device, args.rounds)
            yield case.name, found, table(speed_rows(found))
        elif part == "memory" and _of_memory(case, args.quick):
            found = held_and_peaks(case, device)
            yield case.name, found, table(memory_rows(found))
        elif part == "amortised" and case.step == "competition" and case.gated:
            found = amortised(case, device, args.rounds)
            yield case.name, found, table(amortised_rows(found))


def _of_memory(case: Case, quick: bool) -> bool:
    """Is it among the cases whose memory is looked at? It does not depend on the machine."""
    of_size = (case.dtype, case.width) == ("bfloat16", 512) and case.tokens >= 512
    return quick or (of_size and not case.fresh)


def speed(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of each candidate, and its ratios in the same rounds.

    ``times_faster`` than the loop; ``of_ceiling``: its useful operations a second, of those of a
    large product; ``of_floor``: how long the step's matrix products alone take, of its time.
    """
    given = source(case, device)
    steps = {
        name: Step(candidate.build(given, case), case, device)
        for name, candidate in CANDIDATES.items()
        if candidate.stands(case)
    }
    limit = ceiling(case.dtype, device)
    sizes = group_sizes(given.layer, case, device)
    runs: dict[str, Callable[[], Seconds]] = {
        CEILING: limit,
        FLOOR: Floor(case, sizes, device),
        **steps,
    }
    taken = interleaved(runs, rounds)
    found: dict[str, Any] = {}
    for name in (FLOOR, *steps):
        found[name] = {}
        for number, key in enumerate(Seconds._fields):
            times = {run: [each[number] for each in values] for run, values in taken.items()}
            share = case.flops(backward=key == "both") / limit.flops
            ideal = [share * seconds for seconds in times[CEILING]]
            found[name][key] = {
                "seconds": summary(times[name]),
                "times_faster": paired(times[BASE], times[name]),
                "of_ceiling": paired(ideal, times[name]),
                "of_floor": paired(times[FLOOR], times[name]),
            }
    return {"case": case.to_dict(), "group_sizes": sizes, "candidates": found}


def amortised(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """Time of CompeteSMoE's layers over that of plain SMoE's, forward and backward.

    In the mean over steps, where each layer competes at RATE, and in a step in which CAP of
    LAYERS compete, which is the slowest there is. Elementwise parts are compiled in all of them.
    """
    given = source(case, device)
    prepare = prepared(compiled=case.width >= COMPILED_WIDTH)
    steps = {}
    for name, router in (("plain", "topk"), ("router", "compete"), ("competition", "compete")):
        layer = with_options(given, case, prepare, router=router)
        layer.competing = name == "competition"
        steps[name] = Step(layer, case, device)
    runs: dict[str, Callable[[], Seconds]] = dict(steps)
    taken = interleaved(runs, rounds)
    times = {name: [each.both for each in values] for name, values in taken.items()}
    both = list(zip(times["router"], times["competition"], strict=True))
    shares = {"mean": RATE, "slowest": CAP / LAYERS}
    return {
        "case": case.to_dict(),
        "seconds": {name: summary(values) for name, values in times.items()},
        "competition": paired(times["competition"], times["plain"]),
        **{
            name: paired([(1 - s) * r + s * c for r, c in both], times["plain"])
            for name, s in shares.items()
        },
    }
