"""A checkpoint and rows -> all routing figures, as plain values for JSON.

T tokens of a layer, E experts.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaProcessor, PreTrainedTokenizerBase

from llava_compete.data import Collator, LlavaDataset, image_files
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe.analysis import Tally, chosen_experts, load_gap
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
    """The figures of a model over batches, and of how its choices differ from another model's.

    Of the pictures ``map_files`` every layer's first choice at each patch is kept.
    """

    def __init__(
        self, model: Model, other: Model | None = None, map_files: Collection[str] = ()
    ) -> None:
        check_comparable(model, other)
        self.model, self.other = model.eval(), other
        self.tally = RoutingTally()
        self.words = Words(model.config.text_config.vocab_size)
        self.patches = Patches(model.config.vision.num_patches, MOST, map_files)
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
        parts = part_figures(self.model, self.tally)
        for part, figures in parts.items():
            for place, layer in enumerate(figures["layers"]):
                layer |= self._takes((part, place), processor.tokenizer)
        return plain(
            {
                "answer_loss": {
                    "tokens": self.loss.tokens,
                    "value": loss,
                    "drop_top1": dropped,
                    "drop_top1_change": dropped - loss,
                },
                "grid": math.isqrt(self.model.config.vision.num_patches),
                "parts": parts,
                "maps": [
                    {"file": file, "first": {part: _places(layers, part) for part in parts}}
                    for file, layers in self.patches.maps.items()
                ],
            }
        )

    def _takes(self, key: LayerKey, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        words = self.words.most(key, tokenizer, MOST) if key in self.words.counts else []
        patches = [[patch._asdict() for patch in best] for best in self.patches.most(key)]
        return {"words": words, "patches": patches}


def _places(layers: Mapping[LayerKey, list[int]], part: str) -> list[list[int]]:
    """The values of the part's layers, in order."""
    return [value for (of, _), value in sorted(layers.items()) if of == part]


def part_figures(model: Model, tally: RoutingTally) -> dict[str, dict[str, Any]]:
    """Of every part its routing and its layers: number, figures by kind of token, and the gap
    between the loads of image and of text."""
    names = layer_names(model)
    parts = {}
    for part, config in model.config.moe_configs.items():
        layers = []
        for key in (key for key, _ in keyed_layers(model) if key[0] == part):
            kinds = by_kind(tally.tallies[key]) if key in tally.tallies else {}
            both = "image" in kinds and "text" in kinds
            gap = load_gap(kinds["image"]["load"], kinds["text"]["load"]) if both else math.nan
            layers.append({"layer": names[key], "gap": gap, "kinds": kinds})
        parts[part] = {
            "router": config.router,
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "layers": layers,
        }
    return parts


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


def choose_rows(dataset: LlavaDataset, rows: int | None) -> list[int]:
    """``rows`` places in the file, evenly spread, or all of them."""
    if rows is not None and rows < 1:
        raise ValueError(f"rows={rows} must be at least 1")
    count = len(dataset) if rows is None else min(rows, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def batches(
    dataset: LlavaDataset, processor: LlavaProcessor, chosen: Sequence[int], batch_size: int
) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """The chosen rows in collated batches, each with the files of its pictures."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    collate = Collator(processor)
    begins = range(0, len(chosen), batch_size)
    for begin in tqdm(begins, desc="routing", unit="batch", disable=None):
        indices = chosen[begin : begin + batch_size]
        samples = [dataset[index] for index in indices]
        files: list[str] = []
        for index, sample in zip(indices, samples, strict=True):
            kept = len(sample.get("pixel_values", ()))  # a long row loses its last turns
            files += image_files(dataset.row(index))[:kept]
        yield collate(samples), files


def plain(value: Any) -> Any:
    """The value in JSON's own types: NaN as None, other floats at 6 digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
