"""Timing side by side: the machines are shared, so a figure is only worth its neighbour's."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Found = TypeVar("Found")


def interleaved(
    candidates: Mapping[str, Callable[[], Found]], rounds: int
) -> dict[str, list[Found]]:
    """What each candidate returns in each round; A, B, A, B, after one round that is not kept."""
    found: dict[str, list[Found]] = {name: [] for name in candidates}
    for number in tqdm(range(rounds + 1), desc=" and ".join(candidates)[:60], leave=False):
        for name, measure in candidates.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def paired(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """The ratios ``of / to`` of the same rounds: neighbours in time met the same machine."""
    return summary([a / b for a, b in zip(of, to, strict=True)])


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Laps:
    """Marks in time, and the seconds from the first to each of the others.

    On a CUDA device the marks are events in its stream; elsewhere the clock is read.
    """

    # One of CLOCKS, set by a benchmark's main. On a machine shared with others the processor's is
    # the steadier; it adds up the threads, so it measures speed where there is one.
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """The present, on CUDA when what has been asked for so far is done."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self.clock())

    def seconds(self) -> list[float]:
        """From the first mark to each later one."""
        first, *others = self._marks
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [first.elapsed_time(other) / 1e3 for other in others]
        return [other - first for other in others]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "cores": len(os.sched_getaffinity(0)),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
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
