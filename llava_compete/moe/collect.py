"""What the routers of a forward add to its loss, and what they say for the log."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llava_compete.moe.config import MoEConfig
from llava_compete.moe.layer import MoELayer


class RouterLosses(NamedTuple):
    """Of all parts; ``losses`` and ``metrics`` are keyed part/name, float32, detached.

    A part that saw no token to count says NaN there.
    """

    total: Tensor | float  # the weighted sum to minimise
    losses: dict[str, Tensor]  # unweighted means over the layers that have the loss
    metrics: dict[str, Tensor]
    terms: dict[str, Tensor]  # as losses, never NaN for want of a token


def take_losses(
    parts: Mapping[str, Sequence[MoELayer]], configs: Mapping[str, MoEConfig]
) -> RouterLosses:
    """What the last forward left in the MoE layers of each part, which then hold it no longer."""
    total: Tensor | float = 0.0
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    for part, layers in parts.items():
        if layers[0].routing is None:
            continue  # the projector, in an evaluation of text alone
        _check_graph(part, layers)
        counted = torch.stack([_counted(layer) for layer in layers]).any()
        for name, value in _layer_means(layer.last_routing.losses for layer in layers):
            total = total + configs[part].loss_weights[name] * value
            terms[f"{part}/{name}"] = value.detach()
            losses[f"{part}/{name}"] = _or_nan(value.detach(), counted)
        for name, value in _layer_means(layer.last_routing.metrics for layer in layers):
            metrics[f"{part}/{name}"] = _or_nan(value, counted)
        competing = sum(layer.competing and layer.training for layer in layers)
        metrics[f"{part}/competing_layers"] = torch.full(
            (), float(competing), device=counted.device
        )
        load_E = torch.stack([layer.load_E() for layer in layers]).mean(dim=0)
        for expert, share in enumerate(load_E):
            metrics[f"{part}/load/{expert}"] = _or_nan(share, counted)
        for layer in layers:
            layer.routing = None
            layer.recording = False
    return RouterLosses(total, losses, metrics, terms)


def _check_graph(part: str, layers: Sequence[MoELayer]) -> None:
    if not torch.is_grad_enabled():
        return
    for layer in layers:
        trained = any(parameter.requires_grad for parameter in layer.router.parameters())
        losses = layer.last_routing.losses.values()
        if trained and losses and not any(loss.requires_grad for loss in losses):
            raise RuntimeError(
                f"the router losses of {part} have no graph: re-entrant activation "
                f"checkpointing would train the model but not its routers; use "
                f"activation_checkpointing_kwargs={{'use_reentrant': False}}"
            )


def _counted(layer: MoELayer) -> Tensor:
    """Did the layer see any token that counts?"""
    if layer.mask_T is None:
        return torch.ones((), dtype=torch.bool, device=layer.last_routing.ids_TK.device)
    return layer.mask_T.any()


def _layer_means(per_layer: Iterable[dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Each name's mean over the layers that have it: a competing layer's losses are not thinned
    out by the layers that did not compete."""
    values: dict[str, list[Tensor]] = {}
    for layer in per_layer:
        for name, value in layer.items():
            values.setdefault(name, []).append(value)
    for name, found in values.items():
        yield name, torch.stack(found).mean()


def _or_nan(value: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, value, torch.nan)
