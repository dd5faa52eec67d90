"""A checkpoint and rows -> all routing figures, as plain values for JSON.

T tokens of a layer, E experts.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaProcessor

from llava_compete.data import Collator, LlavaDataset, image_files
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe.analysis import Tally, chosen_experts
from llava_compete.routing.takes import Patches, Words
from llava_compete.routing.watch import (
    KINDS,
    LayerKey,
    RoutingTally,
    Seen,
    dropping_top1,
    keyed_layers,
    watching,
)

MOST = 12  # words and patches that are kept of each expert
MAPS = 6  # pictures of which the first choice at every patch is kept


class AnswerLoss:
    """Mean cross-entropy of the answer tokens, in nats."""

    def __init__(self) -> None:
        self.total = 0.0
        self.tokens = 0

    def add(self, losses_A: Tensor) -> None:
        self.total += losses_A.double().sum().item()
        self.tokens += len(losses_A)

    @property
    def mean(self) -> float:
        return self.total / self.tokens


class Chosen:
    """For ``watching``: who takes which token in the last batch."""

    def __init__(self) -> None:
        self.chosen: dict[LayerKey, Tensor] = {}  # bool (T, E)

    def __call__(self, seen: Seen) -> None:
        num_experts = seen.layer.experts.num_experts
        self.chosen[seen.key] = chosen_experts(seen.routing.ids_TK, num_experts)


class Collector:
    """The figures of a model over batches, and of how its choices differ from another model's."""

    def __init__(self, model: Model, other: Model | None = None) -> None:
        check_comparable(model, other)
        self.model, self.other = model.eval(), other
        self.tally = RoutingTally()
        self.words = Words(model.config.text_config.vocab_size)
        self.patches = Patches(model.config.vision.num_patches, MOST, MAPS)
        self.before, self.after = Chosen(), Chosen()
        self.loss, self.loss_dropped = AnswerLoss(), AnswerLoss()

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Run a collated batch whose pictures are ``files``, in order."""
        self.patches.files = files
        if self.other is not None:
            with watching(self.other, self.before):
                self.other(**batch)
        with watching(self.model, self._see):
            self.loss.add(self.model(**batch).token_losses_A)
        with dropping_top1(self.model):
            self.loss_dropped.add(self.model(**batch).token_losses_A)

    def _see(self, seen: Seen) -> None:
        for watcher in (self.tally, self.words, self.patches, self.after):
            watcher(seen)
        if self.other is not None:
            differs_TE = self.after.chosen[seen.key] != self.before.chosen[seen.key]
            changed_T = differs_TE.any(dim=-1).double()
            for kind, tally in enumerate(self.tally.of(seen)):
                tally.add_mean("changed", changed_T[seen.kind_T == kind])

    def figures(self, processor: LlavaProcessor) -> dict[str, Any]:
        """Everything, JSON's own types alone; what has no value is None."""
        loss, dropped = self.loss.mean, self.loss_dropped.mean
        found = {
            "answer_loss": {
                "tokens": self.loss.tokens,
                "value": loss,
                "drop_top1": dropped,
                "drop_top1_change": dropped - loss,
            },
            "grid": math.isqrt(self.model.config.vision.num_patches),
            "parts": {
                part: self._part(part, config.router, config.top_k, processor)
                for part, config in self.model.config.moe_configs.items()
            },
            "maps": [
                {
                    "file": file,
                    "first": {
                        part: [first for (of, _), first in sorted(layers.items()) if of == part]
                        for part in {part for part, _ in layers}
                    },
                }
                for file, layers in self.patches.maps.items()
            ],
        }
        plain = _plain(found)
        assert isinstance(plain, dict)
        return plain

    def _part(
        self, part: str, router: str, top_k: int, processor: LlavaProcessor
    ) -> dict[str, Any]:
        names = layer_names(self.model)
        keys = [key for key, _ in keyed_layers(self.model) if key[0] == part]
        return {
            "router": router,
            "num_experts": self.model.config.moe_configs[part].num_experts,
            "top_k": top_k,
            "layers": [
                {"layer": names[key], "kinds": self._kinds(key), **self._takes(key, processor)}
                for key in keys
                if key in self.tally.tallies  # a projector sees no token where no row has a picture
            ],
        }

    def _kinds(self, key: LayerKey) -> dict[str, Any]:
        return by_kind(self.tally.tallies[key])

    def _takes(self, key: LayerKey, processor: LlavaProcessor) -> dict[str, Any]:
        words = []
        if key in self.words.counts:
            words = self.words.most(key, lambda word: processor.tokenizer.decode([word]), MOST)
        patches = [[patch._asdict() for patch in best] for best in self.patches.most(key)]
        return {"words": words, "patches": patches}


def by_kind(tallies: Sequence[Tally]) -> dict[str, dict[str, Any]]:
    """The figures of each kind of token that the layer saw, and of ``all`` its tokens."""
    seen = {kind: t for kind, t in zip(KINDS, tallies, strict=True) if t.sums["tokens"] > 0}
    if not seen:
        return {}
    total, *rest = seen.values()
    for tally in rest:
        total = total + tally
    return {kind: tally.figures() for kind, tally in {**seen, "all": total}.items()}


def layer_names(model: Model) -> dict[LayerKey, int]:
    """The number by which a part's configuration names the layer: the block's, or 0."""
    found = {id(module): name for name, module in model.named_modules()}
    names = {}
    for key, layer in keyed_layers(model):
        numbers = re.findall(r"\.(\d+)\.", found[id(layer)])
        names[key] = int(numbers[-1]) if numbers else 0
    return names


def check_comparable(model: Model, other: Model | None) -> None:
    """ValueError for a dense model, or for two whose layers or experts are not the same places."""
    if not model.moe_layers():
        raise ValueError(
            "the checkpoint is dense: it has no router; `llava-compete upcycle` makes experts"
        )
    if other is None:
        return
    shapes = [_shape(model), _shape(other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"other: the two checkpoints' experts cannot be compared: {shapes[0]} and {shapes[1]} "
            f"(part: layers, experts)"
        )


def _shape(model: Model) -> dict[str, tuple[list[int], int]]:
    names = layer_names(model)
    return {
        part: (
            [names[part, place] for place in range(len(layers))],
            layers[0].experts.num_experts,
        )
        for part, layers in model.moe_layers().items()
    }


def batches(
    dataset: LlavaDataset, processor: LlavaProcessor, rows: int | None, batch_size: int
) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Collated batches and the files of their pictures; ``rows`` of the file, evenly spread."""
    if batch_size < 1 or (rows is not None and rows < 1):
        raise ValueError(f"rows={rows} and batch_size={batch_size} must be at least 1")
    count = len(dataset) if rows is None else min(rows, len(dataset))
    chosen = [place * len(dataset) // count for place in range(count)]
    collate = Collator(processor)
    for begin in tqdm(range(0, count, batch_size), desc="routing", unit="batch", disable=None):
        indices = chosen[begin : begin + batch_size]
        samples = [dataset[index] for index in indices]
        files: list[str] = []
        for index, sample in zip(indices, samples, strict=True):
            kept = len(sample.get("pixel_values", ()))  # a long row loses its last turns
            files += image_files(dataset.row(index))[:kept]
        yield collate(samples), files


def _plain(value: Any) -> Any:
    """The value with NaN as None and floats at 6 digits; recursively."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def collect(
    model: Model,
    processor: LlavaProcessor,
    data: Path,
    image_folder: Path,
    *,
    other: Model | None = None,
    rows: int | None = None,
    batch_size: int = 4,
    max_length: int | None = None,
) -> dict[str, Any]:
    """All figures of ``rows`` rows (None: all) of a LLaVA file; ValueError for what is wrong."""
    collector = Collector(model, other)
    dataset = LlavaDataset(data, image_folder, processor, max_length)
    for batch, files in batches(dataset, processor, rows, batch_size):
        moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
        collector.add(moved, files)
    return collector.figures(processor)
