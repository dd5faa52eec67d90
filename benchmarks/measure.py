"""Timing side by side: the machines are shared, so a figure is only worth its neighbour's."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def interleaved(
    candidates: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """What each candidate returns in each round; A, B, A, B, after one round that is not kept."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for number in tqdm(range(rounds + 1), desc=" and ".join(candidates), leave=False):
        for name, measure in candidates.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(rows: Sequence[Sequence[Any]]) -> str:
    """The rows in columns, the first row as their heads; numbers to the right."""
    cells = [
        [
            f"{c:,.3g}" if isinstance(c, float) else f"{c:,}" if isinstance(c, int) else str(c)
            for c in row
        ]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def write(path: Path, results: Mapping[str, Any]) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
