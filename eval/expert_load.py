"""How many tokens each expert is given for a question, counted while the model answers.

The counts of a question are those of asking it alone: padding adds nothing, nor does a row behind
its stop token, and what is run once for several questions (a picture, the beginning of a prompt)
counts for each of them.

B rows of a forward, L positions, T tokens of a layer, P places to count for (a kind of token of a
row, or a picture), S samples, K columns of ids, E experts; E + 1 columns count "no expert" too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eval.inference import Inference
from eval.plan import Request
from eval.store import Record
from llava_compete.checkpoint import read_config
from llava_compete.model import LANGUAGE
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import MoELayer, Routing
from llava_compete.routing.collect import layer_names
from llava_compete.routing.watch import ANSWER, IMAGE, KINDS, TEXT, LayerKey, keyed_layers

PROJECTOR, TOWER = "projector", "vision"
TOKENS: LayerKey = ("tokens", 0)  # those of the language model, as if one expert took them all

Layers = Mapping[LayerKey, MoELayer]


def check_countable(
    checkpoint: Path, inference: Inference, requests: Mapping[str, Sequence[Request]]
) -> None:
    """ValueError where nothing is to be counted, or what is run is not one row an answer.

    ``requests`` are those of each task.
    """
    if not read_config(checkpoint).moe_configs:
        raise ValueError(f"{checkpoint} has no experts whose tokens could be counted")
    if (inference.num_beams or 1) > 1:
        raise ValueError(
            f"num_beams={inference.num_beams} and expert_load: most tokens of a beam search are "
            f"of no answer; give one of them"
        )
    if inference.self_contrast is not None:
        raise ValueError(
            "self_contrast and expert_load: the weak pass takes other experts than those that the "
            "router chooses; give one of them"
        )
    for task, asked in requests.items():
        if all(request.wants != "answer" for request in asked):
            raise ValueError(
                f"task {task} is answered by the losses of options, and expert_load counts what "
                f"answers in words take; ask the task without it"
            )


class ExpertLoad:
    """Counts what the experts of the language model and of the projector are given.

    ``begin`` a batch, run what answers it inside of ``rows``, in one go or in several, and take
    ``counts``.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._layers = _layers_of(model, LANGUAGE, PROJECTOR)
        self.begin(0)

    def begin(self, num_samples: int) -> None:
        """Forget what was counted; samples are 0 to ``num_samples`` - 1 from here on."""
        self._sums = self._zeros(num_samples, len(KINDS))

    @contextmanager
    def rows(self, samples_of_row: Sequence[Sequence[int]], mask_BL: Tensor) -> Iterator[None]:
        """Count the forwards inside, each of their rows for all samples that it is of.

        The first is of B prompts, or parts of prompts, as ``model.embed`` takes them, padding
        where ``mask_BL`` (B, L) is 0; those behind it are of one generated token a row.
        """
        sums = self._zeros(len(samples_of_row) * len(KINDS) + 1)
        places = _Places(self._model, mask_BL)

        def take_ids(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            places.take(args[0])
            _count(sums[TOKENS], torch.zeros_like(places.tokens_T)[:, None], places.tokens_T)

        def see(key: LayerKey, ids_TK: Tensor) -> None:
            _count(sums[key], ids_TK, places.tokens_T if key[0] == LANGUAGE else places.patches_T)

        embedding = self._model.get_input_embeddings()
        with _removing([embedding.register_forward_pre_hook(take_ids), *_hooks(self._layers, see)]):
            yield
        row_R = [row for row, samples in enumerate(samples_of_row) for _ in samples]
        sample_R = [sample for samples in samples_of_row for sample in samples]
        index_R = torch.tensor(sample_R, device=self._model.device)
        for key, sums_P in sums.items():
            of_row = sums_P[:-1].unflatten(0, (-1, len(KINDS)))
            self._sums[key].index_add_(0, index_R, of_row[row_R])

    def counts(self) -> list[Record]:
        """Of each sample by part and kind of token: ``tokens``, and ``chosen``, by the number of
        the layer how many of the tokens each expert is given. What has no tokens is left out."""
        numbers = layer_names(self._model)
        tokens = self._sums[TOKENS][..., 0].tolist()
        chosen = {key: self._sums[key][..., :-1].tolist() for key in self._layers}

        def of(sample: int, part: str, kind: int) -> Record:
            layers = {numbers[key]: chosen[key][sample][kind] for key in chosen if key[0] == part}
            return _counted(tokens[sample][kind], layers)

        seen = {
            part: kinds
            for part, kinds in ((LANGUAGE, range(len(KINDS))), (PROJECTOR, (IMAGE,)))
            if any(key[0] == part for key in self._layers)
        }
        return [
            {
                part: {KINDS[kind]: of(sample, part, kind) for kind in kinds if of_kind[kind]}
                for part, kinds in seen.items()
                if any(of_kind[kind] for kind in kinds)
            }
            for sample, of_kind in enumerate(tokens)
        ]

    def _zeros(self, *shape: int) -> dict[LayerKey, Tensor]:
        num_experts = {key: layer.experts.num_experts for key, layer in self._layers.items()}
        return {
            key: torch.zeros(*shape, count + 1, dtype=torch.int64, device=self._model.device)
            for key, count in {TOKENS: 1, **num_experts}.items()
        }


class Seen(NamedTuple):
    """What the tower made of pictures and how many tokens of each its experts were given."""

    features_NPV: Tensor
    counts: list[Record]  # as ExpertLoad.counts has a part


def see_pictures(model: Model, pixel_values: Tensor) -> Seen:
    """``model.picture_features`` of N pictures by a tower with experts, and the counts of each."""
    layers = _layers_of(model, TOWER)
    numbers = layer_names(model)
    num_pictures = len(pixel_values)
    chosen: dict[int, list[list[int]]] = {}
    num_tokens = model.vision.tokens_per_image()

    def see(key: LayerKey, ids_TK: Tensor) -> None:
        sums = ids_TK.new_zeros(num_pictures, layers[key].experts.num_experts + 1)
        picture_T = torch.arange(num_pictures, device=ids_TK.device).repeat_interleave(num_tokens)
        _count(sums, ids_TK, picture_T)
        chosen[numbers[key]] = sums[:, :-1].tolist()

    with _removing(_hooks(layers, see)):
        features_NPV = model.picture_features(pixel_values)
    counts = [
        _counted(num_tokens, {number: of_N[place] for number, of_N in chosen.items()})
        for place in range(num_pictures)
    ]
    return Seen(features_NPV, [{TOWER: {KINDS[IMAGE]: found}} for found in counts])


def _counted(tokens: int, chosen: Mapping[int, list[int]]) -> Record:
    return {"tokens": tokens, "chosen": {str(number): of for number, of in chosen.items()}}


class _Places:
    """Where each token of a forward counts: row * kinds + kind, and behind all of them nowhere."""

    def __init__(self, model: Model, mask_BL: Tensor) -> None:
        stops = model.generation_config.eos_token_id
        self._mask_BL: Tensor | None = mask_BL.bool().to(model.device)
        self._stops_X = torch.tensor(stops, device=model.device).reshape(-1)
        self._image_token_id = model.config.image_token_id
        self._nowhere = len(mask_BL) * len(KINDS)
        self._row_B1 = torch.arange(len(mask_BL), device=model.device)[:, None] * len(KINDS)
        self._going_B1 = torch.ones_like(self._row_B1, dtype=torch.bool)  # not at its stop token

    def take(self, ids_BL: Tensor) -> None:
        """The ids of the forward that begins."""
        if self._mask_BL is None:
            self._going_B1 = self._going_B1 & ~torch.isin(ids_BL, self._stops_X)
            place_BL, counted_BL = self._row_B1 + ANSWER, self._going_B1
        else:
            is_image_BL = ids_BL == self._image_token_id
            place_BL = self._row_B1 + torch.where(is_image_BL, IMAGE, TEXT)
            # The placeholders, in order, are what the projector hands on (model.embed).
            self.patches_T = place_BL[is_image_BL]
            counted_BL, self._mask_BL = self._mask_BL, None
        self.tokens_T = torch.where(counted_BL, place_BL, self._nowhere).reshape(-1)


def _count(sums_PE: Tensor, ids_TK: Tensor, place_T: Tensor) -> None:
    """Add every choice to its place and expert, without waiting for the device."""
    cell_TK = place_T[:, None] * sums_PE.shape[1] + ids_TK
    ones = torch.ones_like(cell_TK)
    sums_PE.view(-1).index_add_(0, cell_TK.reshape(-1), ones.reshape(-1))


def _layers_of(model: Model, *parts: str) -> dict[LayerKey, MoELayer]:
    return {key: layer for key, layer in keyed_layers(model) if key[0] in parts}


def _hooks(layers: Layers, see: Callable[[LayerKey, Tensor], None]) -> list[RemovableHandle]:
    """Hand the choices of every forward to ``see``.

    From the router, not from ``layer.routing``: a layer keeps none in a generation that comes
    behind a loss.
    """

    def after(key: LayerKey, _: nn.Module, __: tuple[Any, ...], routing: Routing) -> None:
        see(key, routing.ids_TK)

    return [
        layer.router.register_forward_hook(partial(after, key)) for key, layer in layers.items()
    ]


@contextmanager
def _removing(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
