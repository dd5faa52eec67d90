"""A training step of the projector with the image tower and with its cached features.

python -m benchmarks features --checkpoint outputs/quickstart/dense \
  --data ~/.cache/llava_compete/quickstart/align.json \
  --image_folder ~/.cache/llava_compete/quickstart
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.measure import interleaved, machine, summary, table, write
from llava_compete.cache_features import cache_features
from llava_compete.checkpoint import Model, load
from llava_compete.data import Collator, LlavaDataset
from llava_compete.training.parts import set_trainable


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True)
    add("--data", type=Path, required=True, help="data file, each row with a picture")
    add("--image_folder", type=Path, required=True)
    add("--output", type=Path, default=Path("outputs/benchmarks/features.json"))
    add("--batch_size", type=int, default=4)
    add("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cache = cache_features(
            args.checkpoint, [args.data], args.image_folder, Path(folder) / "cache", num_workers=0
        )
        assert cache is not None
        seconds = time.perf_counter() - begin
        results["making"] = {"pictures": len(cache), "pictures_per_second": len(cache) / seconds}
        results |= _steps(args, {"tower": None, "cached": cache})
    write(args.output, results)
    print(table(_rows(results)))
    print(f"\n{args.output}: {results['machine']}; cache made at {results['making']}")


def _steps(args: argparse.Namespace, caches: dict[str, Any]) -> dict[str, Any]:
    model, processor = load(args.checkpoint)
    set_trainable(model, ["projector"])
    model.train()
    parts: dict[str, dict[str, Callable[[], float]]] = {"rows": {}, "step": {}}
    batches: dict[str, dict[str, Tensor]] = {}
    for name, cache in caches.items():
        dataset = LlavaDataset(args.data, args.image_folder, processor, features=cache)
        rows = itertools.cycle(range(len(dataset)))
        draw = _Draw(dataset, Collator(processor), rows, args.batch_size, batches, name)
        parts["rows"][name] = draw
        parts["step"][name] = _Step(model, batches, name)
    candidates = {f"{part}, {name}": run for part in parts for name, run in parts[part].items()}
    measured = interleaved(candidates, args.rounds)
    found = {name: summary(values) for name, values in measured.items()}
    for name in caches:
        both = zip(measured[f"rows, {name}"], measured[f"step, {name}"], strict=True)
        found[f"together, {name}"] = summary([sum(pair) for pair in both])
    return {"seconds": found}


class _Draw:
    """Called: reads and collates the next rows in this process; its seconds."""

    def __init__(
        self,
        dataset: LlavaDataset,
        collate: Collator,
        rows: Iterator[int],
        batch_size: int,
        batches: dict[str, dict[str, Tensor]],
        name: str,
    ) -> None:
        self.dataset, self.collate, self.rows, self.batch_size = dataset, collate, rows, batch_size
        self.batches, self.name = batches, name

    def __call__(self) -> float:
        begin = time.perf_counter()
        chosen = itertools.islice(self.rows, self.batch_size)
        self.batches[self.name] = self.collate([self.dataset[row] for row in chosen])
        return time.perf_counter() - begin


class _Step:
    """Called: forward and backward of the batch drawn last; its seconds."""

    def __init__(self, model: Model, batches: dict[str, dict[str, Tensor]], name: str) -> None:
        self.model, self.batches, self.name = model, batches, name

    def __call__(self) -> float:
        begin = time.perf_counter()
        self.model(**self.batches[self.name]).loss.backward()
        seconds = time.perf_counter() - begin
        self.model.zero_grad(set_to_none=True)
        return seconds


def _rows(results: dict[str, Any]) -> list[list[Any]]:
    """Milliseconds of a batch, with the tower and cached, and how many times faster."""
    rows: list[list[Any]] = [["milliseconds of a batch", "tower", "cached", "times faster"]]
    for part in ("rows", "step", "together"):
        tower, cached = (results["seconds"][f"{part}, {n}"]["median"] for n in ("tower", "cached"))
        rows.append([part, 1e3 * tower, 1e3 * cached, tower / cached])
    return rows
