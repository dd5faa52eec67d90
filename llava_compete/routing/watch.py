"""Watch the MoE layers of a model while it runs, by forward hooks that are gone afterwards.

B batch, L sequence, N images in the batch, P patches an image, S tokens of a picture in a layer,
T tokens of a layer, D width in, O width out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llava_compete.data import IGNORED
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import MoELayer, Routing
from llava_compete.moe.analysis import Tally, replacement, token_figures

# What a token is: a patch of a picture, something said to the model (the template's markers too),
# something that it has to say.
KINDS = ("image", "text", "answer")
IMAGE, TEXT, ANSWER = range(len(KINDS))
UNCOUNTED = -1  # padding, and the blank image of a batch without pictures

LayerKey = tuple[str, int]  # part, place of the layer in it


class Seen(NamedTuple):
    """One forward of one MoE layer, its tokens in a row; tensors without a graph."""

    key: LayerKey
    layer: MoELayer
    routing: Routing
    x_TD: Tensor
    y_TO: Tensor  # the layer's output
    kind_T: Tensor  # int64: a place in KINDS, or UNCOUNTED
    ids_T: Tensor | None  # int64 vocabulary ids; None where tokens have none
    patch_T: Tensor | None  # int64: image * P + patch; -1: no patch. None: not to be told


class _Batch(NamedTuple):
    """What the model was called with; tensors for the language model's tokens, T = B*L."""

    kind_T: Tensor
    ids_T: Tensor | None
    patch_T: Tensor | None
    num_images: int


@contextmanager
def watching(model: Model, see: Callable[[Seen], None]) -> Iterator[None]:
    """Hand each forward of each MoE layer to ``see``; the model's output keeps every bit.

    The model must be called by keyword, as trainers do. Left out are forwards in which the layer
    competes, because then not its router chooses, and those that activation checkpointing repeats.
    """
    batch: list[_Batch] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch[:] = [_describe(model, kwargs)]

    @torch.no_grad()
    def after(key: LayerKey, layer: MoELayer, args: tuple[Tensor, ...], y: Tensor) -> None:
        if layer.recording and not (layer.competing and layer.training):
            see(_seen(model, key, layer, args[0].detach(), y.detach(), batch[0]))

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for key, layer in keyed_layers(model):
        handles.append(layer.register_forward_hook(partial(after, key)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def dropping_top1(model: Model) -> Iterator[None]:
    """In every MoE layer the (K+1)-th expert takes the place of the first (see replacement)."""

    @torch.no_grad()
    def after(layer: MoELayer, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x_TD = args[0].reshape(-1, args[0].shape[-1])
        first_T, next_T, weight_T = replacement(layer.last_routing)
        came_and_went_T2 = torch.stack([next_T, first_T], dim=1)
        change_TO = layer.experts(x_TD, came_and_went_T2, torch.stack([weight_T, -weight_T], dim=1))
        return y + change_TO.view_as(y)

    handles = [layer.register_forward_hook(after) for _, layer in keyed_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def keyed_layers(model: Model) -> Iterator[tuple[LayerKey, MoELayer]]:
    """All MoE layers of the model with their keys."""
    for part, layers in model.moe_layers().items():
        for place, layer in enumerate(layers):
            yield (part, place), layer


class RoutingTally:
    """For ``watching``: the figures of moe.analysis, by layer and kind of token."""

    def __init__(self) -> None:
        self.tallies: dict[LayerKey, tuple[Tally, ...]] = {}

    def __call__(self, seen: Seen) -> None:
        # All experts on all tokens in one call: under ZeRO-3 every rank must gather alike.
        outputs_TEO = seen.layer.experts.all_outputs(seen.x_TD)
        figures = token_figures(seen.routing, outputs_TEO, seen.y_TO)
        for kind, tally in enumerate(self.of(seen)):
            tally.add(figures, seen.kind_T == kind)

    def of(self, seen: Seen) -> tuple[Tally, ...]:
        """The layer's sums, one of each of KINDS."""
        if seen.key not in self.tallies:
            num_experts, device = seen.layer.experts.num_experts, seen.x_TD.device
            self.tallies[seen.key] = tuple(Tally(num_experts, device) for _ in KINDS)
        return self.tallies[seen.key]


def _describe(model: Model, kwargs: dict[str, Any]) -> _Batch:
    ids_T = kwargs["input_ids"].reshape(-1)
    is_image_T = ids_T == model.config.image_token_id
    kind_T = torch.where(is_image_T, IMAGE, TEXT)
    if kwargs.get("labels") is not None:
        kind_T = torch.where(kwargs["labels"].reshape(-1) != IGNORED, ANSWER, kind_T)
    # The placeholders of all images, in order, are the patches in order (model.embed).
    patch_T = torch.where(is_image_T, is_image_T.cumsum(dim=0) - 1, -1)
    images = kwargs.get("image_index")
    if images is None:
        images = kwargs.get("pixel_values")
    return _Batch(kind_T, ids_T, patch_T, num_images=0 if images is None else len(images))


def _seen(
    model: Model, key: LayerKey, layer: MoELayer, x: Tensor, y: Tensor, batch: _Batch
) -> Seen:
    x_TD = x.reshape(-1, x.shape[-1])
    kind_T, ids_T, patch_T = batch.kind_T, batch.ids_T, batch.patch_T
    if key[0] != "language_model":  # a layer on pictures
        kind_T, ids_T = torch.full((len(x_TD),), IMAGE, device=x.device), None
        patch_T = _patches_of(x, model.config.vision.num_patches, batch.num_images)
    if layer.mask_T is not None:
        kind_T = kind_T.masked_fill(~layer.mask_T, UNCOUNTED)
    return Seen(
        key=key,
        layer=layer,
        routing=layer.last_routing,
        x_TD=x_TD,
        y_TO=y.reshape(-1, y.shape[-1]),
        kind_T=kind_T,
        ids_T=ids_T,
        patch_T=patch_T,
    )


def _patches_of(x_MSD: Tensor, num_patches: int, num_images: int) -> Tensor | None:
    """Of a layer on pictures: M = N*C crops of which each image's first is the image itself.

    The class and register tokens before the patches are none. None where the layer does not see
    the pictures patch by patch.
    """
    crops, tokens = x_MSD.shape[:2]
    extra = tokens - num_patches
    if num_images == 0 or crops % num_images or extra < 0:
        return None
    crop_M1 = torch.arange(crops, device=x_MSD.device)[:, None]
    patch_S = torch.arange(tokens, device=x_MSD.device) - extra
    per_image = crops // num_images
    patch_MS = crop_M1 // per_image * num_patches + patch_S
    known_MS = (patch_S >= 0) & (crop_M1 % per_image == 0)
    return torch.where(known_MS, patch_MS, -1).reshape(-1)
