"""Memory of a loader's workers that go through a file of 665,298 rows."""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LlavaProcessor

from benchmarks.llava_path import ListOfDicts
from benchmarks.measure import table
from benchmarks.mixture import IMAGE_TOKENS, MAX_LENGTH, draw_lengths
from llava_compete.data import LlavaDataset
from llava_compete.data.encode import processor_fingerprint

WORKERS = 4
# Of /proc/PID/smaps_rollup. Private_Dirty: what this worker alone holds and the system cannot
# drop. Pss: its share of all it maps, the data file's pages among it, which the system can drop.
FIGURES = ("Private_Dirty", "Pss", "Rss")


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """MB of a worker after an epoch of which each of WORKERS has read its part."""
    from benchmarks.data import make_processor

    processor = make_processor(args.checkpoint, "ViT-L-14-336")
    lines, whole = _write_rows(folder, processor)
    builders: dict[str, Callable[[], Any]] = {
        "neither": Nothing,
        "plain": partial(ListOfDicts, whole, folder, processor),
        "ours": partial(LlavaDataset, lines, folder, processor, MAX_LENGTH),
    }
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as pool:
        found = {name: pool.submit(_workers, build).result() for name, build in builders.items()}
    for name in ("plain", "ours"):
        own = {key: found[name][key] - found["neither"][key] for key in FIGURES}
        found[name] |= {f"{key}_own": value for key, value in own.items()}
    keys = (*FIGURES, "seconds_to_open", "seconds_to_open_again")
    rows = [(name, *(round(f[key], 1) for key in keys)) for name, f in found.items()]
    print(f"\n{table([('MB of a worker', *keys), *rows])}")
    ratio = found["ours"]["Private_Dirty_own"] / found["plain"]["Private_Dirty_own"]
    print(f"of the rows' private memory, beside that of the libraries: {ratio:.3f} of plain")
    return found


def _write_rows(folder: Path, processor: LlavaProcessor) -> tuple[Path, Path]:
    """Rows as long as the mixture's, with the lengths that normalise writes, as .jsonl and .json.

    No picture is read, so none is there: a row's tokens are all text.
    """
    by = processor_fingerprint(processor)
    files = folder / "mix.jsonl", folder / "mix.json"
    lengths = draw_lengths().tolist()
    with files[0].open("w") as lines, files[1].open("w") as whole:
        for number, length in enumerate(tqdm(lengths, desc="writing rows", leave=False)):
            text = "of a picture " * max(1, (length - IMAGE_TOKENS) // 3)
            turns = [("human", f"What is number {number}?"), ("gpt", text)]
            row = {
                "id": f"row-{number:06}",
                "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
                "length": length,
                "length_by": by,
            }
            line = json.dumps(row)
            lines.write(f"{line}\n")
            whole.write(("," if number else "[") + line)
        whole.write("]")
    return files


class Nothing:
    """The rows of no dataset: what the libraries themselves take."""

    def __len__(self) -> int:
        return 665_298

    def row(self, index: int) -> int:
        """The number itself."""
        return index


class Readers(Dataset):
    """Sample w of WORKERS: the memory of a process that has read its part of all rows."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return WORKERS

    def __getitem__(self, worker: int) -> dict[str, float]:
        order = np.random.default_rng(0).permutation(len(self.rows))
        for index in order[worker::WORKERS].tolist():
            self.rows.row(index)
        rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
        kilobytes = {line.split(":")[0]: line.split()[1] for line in rollup[1:]}
        return {name: int(kilobytes[name]) / 1e3 for name in FIGURES}


def _workers(build: Callable[[], Any]) -> dict[str, float]:
    """The mean over the workers, in a process that has held no other rows before."""
    seconds = {}
    for name in ("seconds_to_open", "seconds_to_open_again"):
        begin = time.perf_counter()
        rows = build()
        seconds[name] = time.perf_counter() - begin
    loader = DataLoader(
        Readers(rows),
        batch_size=None,
        num_workers=WORKERS,
        prefetch_factor=1,
        multiprocessing_context="fork",  # a loader's own way, except in a spawned process
    )
    found = list(loader)
    return {name: sum(f[name] for f in found) / WORKERS for name in FIGURES} | seconds
