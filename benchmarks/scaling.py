"""What a training step costs as it grows: modelled, and measured where two cores can.

traffic: bytes of DeepSpeed's collectives in steps of two processes, beside the model's.
growth: the model's cost as one quantity doubles. sizes: seconds of compute and of communication
for models of some billion parameters. experts: expert parallelism beside ZeRO-3. layer: times of
the MoE layer, as `python -m benchmarks moe --parts curves` has measured them, beside a line.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import scaling_tables as tables
from benchmarks.measure import machine, table, write

PARTS = ("traffic", "growth", "schedule", "sizes", "experts", "layer")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--curves", type=Path, default=Path("outputs/benchmarks/moe.json"), help="of moe's curves")
    add("--json", type=Path, default=Path("outputs/benchmarks/scaling.json"))
    add("--figure", type=Path, default=None, help="SVG of layer and sizes; none by default")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {"machine": machine(), "assumed": asdict(tables.ASSUMED)}
    makers = {
        "traffic": tables.traffic,
        "growth": tables.growth,
        "schedule": tables.schedule,
        "sizes": tables.real_sizes,
        "experts": tables.expert_parallelism,
        "layer": lambda: tables.layer(args.curves),
    }
    for part in args.parts:
        rows = makers[part]()
        results[part] = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        write(args.json, results)
        print(f"\n{part}\n{table(rows)}", flush=True)
    if args.figure is not None:
        from benchmarks.scaling_figure import draw

        draw(args.curves, args.figure)
