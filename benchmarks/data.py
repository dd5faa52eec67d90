"""The data path: decoding, padding against packing, memory of a loader's worker.

python -m benchmarks data --checkpoint outputs/quickstart/dense
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import trange
from transformers import AutoTokenizer, LlavaProcessor

from benchmarks.llava_path import ListOfDicts
from benchmarks.measure import interleaved, machine, summary, table, write
from benchmarks.mixture import MAX_LENGTH, draw_lengths
from benchmarks.packed_step import StepTimer, build_model, fill_budget
from benchmarks.worker_memory import memory
from llava_compete.data import Collator, LlavaDataset
from llava_compete.data.batches import BATCHINGS, Batches
from llava_compete.processor import build_processor
from llava_compete.vision import describe_tower

TOWERS = {"ViT-L-14": 224, "ViT-L-14-336": 336}  # the smaller one lets a decoder do less
BATCH = 16


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks data",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="whose tokenizer is used")
    add("--output", type=Path, default=Path("outputs/benchmarks/data.json"))
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--pictures", type=int, default=2000, help="of 640 x 480 pixels, as COCO's")
    add("--workers", type=int, default=2)
    add("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only:
            results[part] = PARTS[part](args, Path(folder))
            write(args.output, results)
    print(f"\n{args.output}: {results['machine']}")


def _samples(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samples per second through a loader, for towers of two sizes."""
    file = _write_pictures(folder, args.pictures)
    found: dict[str, Any] = {}
    for tower, side in TOWERS.items():
        processor = make_processor(args.checkpoint, tower)
        paths: dict[str, Dataset] = {
            "plain": ListOfDicts(file, folder, processor),
            "ours": LlavaDataset(file, folder, processor, MAX_LENGTH),
        }
        measures = {
            name: _loader_speed(dataset, processor, args.workers) for name, dataset in paths.items()
        }
        speeds = interleaved(measures, args.rounds)
        found[tower] = {name: summary(values) for name, values in speeds.items()}
        found[tower]["ratio"] = found[tower]["ours"]["median"] / found[tower]["plain"]["median"]
        found[tower]["side"] = side
    rows = [
        (f"{tower}, {f['side']} px", f["plain"]["median"], f["ours"]["median"], f["ratio"])
        for tower, f in found.items()
    ]
    heads = ("samples per second", "plain", "ours", "ratio")
    print(f"\n{table([heads, *rows])}\n{args.pictures} JPEGs, {args.workers} workers")
    return found


def _write_pictures(folder: Path, count: int) -> Path:
    """JPEGs with the detail, and so the size, of photographs, and three questions to each."""
    generator = np.random.default_rng(0)
    rows = []
    for number in trange(count, desc="pictures", leave=False):
        coarse, fine = (
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
            for size in ((24, 32), (480, 640))
        )
        picture = Image.blend(coarse.resize((640, 480), Image.Resampling.BICUBIC), fine, 0.12)
        picture.save(folder / f"{number}.jpg", quality=90)
        turns = [
            {"from": speaker, "value": text}
            for turn in range(3)
            for speaker, text in (
                ("human", "<image>\n" * (turn == 0) + f"What is the colour of object {turn}?"),
                ("gpt", "It is mostly green, with a little red where the light falls on it."),
            )
        ]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    file = folder / "pictures.json"
    file.write_text(json.dumps(rows))
    return file


def make_processor(checkpoint: Path, tower: str) -> LlavaProcessor:
    """The checkpoint's tokenizer with the pictures of a published tower."""
    vision = describe_tower(tower, -2, pretrained="openai")
    return build_processor(AutoTokenizer.from_pretrained(checkpoint), vision)


def _loader_speed(dataset: Dataset, processor: LlavaProcessor, workers: int) -> Callable[[], float]:
    """Samples per second, from the first batch on, of a quarter of the data."""
    generator = torch.Generator().manual_seed(0)

    def measure() -> float:
        rows = torch.randperm(len(dataset), generator=generator)[: len(dataset) // 4].tolist()  # type: ignore[arg-type]
        loader = DataLoader(
            dataset,
            batch_size=BATCH,
            sampler=rows,
            num_workers=workers,
            collate_fn=Collator(processor),
        )
        batches = iter(loader)
        next(batches)
        begin = time.perf_counter()
        seen = sum(len(batch["input_ids"]) for batch in batches)
        return seen / (time.perf_counter() - begin)

    return measure


def _packing(args: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Share of real tokens in each way of batching, and real tokens per second of training.

    The share is of 16 rows or packs; a step of training holds what fits into as many tokens.
    """
    lengths = draw_lengths()
    fills: dict[str, Any] = {}
    for name, batches in _ways(lengths).items():
        begin = time.perf_counter()
        real, all_ = _fill(batches, lengths)
        fills[name] = {
            "real": real / all_,
            "batches": len(batches),
            "seconds": time.perf_counter() - begin,
        }
    heads = ("665,298 rows", "real tokens", "batches", "seconds")
    rows = [(name, f["real"], f["batches"], f["seconds"]) for name, f in fills.items()]
    print(f"\n{table([heads, *rows])}")
    timers = {}
    for name, batches in _ways(lengths).items():
        packed = name == "packed"
        filled = fill_budget(batches, lengths, BATCH * MAX_LENGTH)
        timers[name] = StepTimer(build_model(packed=packed), filled, packed=packed)
    found = interleaved(timers, args.rounds)
    speeds = {name: summary(values) for name, values in found.items()}
    plain = speeds["shuffled"]["median"]
    steps = [(name, speed["median"], speed["median"] / plain) for name, speed in speeds.items()]
    print(f"\n{table([('training step', 'real tokens/s', 'to shuffled'), *steps])}")
    return {"fill": fills, "tokens_per_second": speeds}


def _ways(lengths: Any) -> dict[str, Batches]:
    """Batches of one token budget: 16 sequences of at most MAX_LENGTH tokens."""
    return {
        name: Batches(lengths, batching=name, batch_size=BATCH, max_length=MAX_LENGTH, seed=0)
        for name in BATCHINGS
    }


def _fill(batches: Batches, lengths: Any) -> tuple[int, int]:
    """Tokens of rows, and positions of the batches that hold them, in an epoch."""
    real = all_ = 0
    for batch in batches:
        units = [list(unit) if isinstance(unit, tuple) else [unit] for unit in batch]
        sizes = [int(lengths[unit].sum()) for unit in units]
        real += sum(sizes)
        all_ += max(sizes) * len(sizes)
    return real, all_


PARTS = {"samples": _samples, "packing": _packing, "memory": memory}
