"""What a run asks of a checkpoint other than it is saved: another routing, another decoding."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from eval.inference import Inference
from eval.sampling import Sampling
from eval.store import Record
from llava_compete import MoEConfig, RoutingChange, SelfContrast
from llava_compete.checkpoint import changed_configs, read_config


def changes(checkpoint: Path, inference: Inference) -> Record:
    """What ``inference`` makes other than the checkpoint is saved, in whole; {} where nothing.

    ValueError where the checkpoint cannot be run so, as far as its config.json tells.
    """
    config = read_config(checkpoint)
    routing, self_contrast = routing_of(inference)
    asked = changed_configs(config, routing, checkpoint)
    saved = _routings(config.moe_configs)
    found: Record = {}
    if other := {p: r for p, r in _routings(asked).items() if r != saved[p]}:
        found["routing"] = other
    if self_contrast is not None:
        self_contrast.check(asked)
        found["self_contrast"] = asdict(self_contrast)
    num_beams, sampling = decoding_of(inference)
    if num_beams > 1:
        found["num_beams"] = num_beams
    if sampling is not None:
        found["sampling"] = asdict(sampling)
    if inference.rank_options:
        found["rank_options"] = True
    return found


def routing_of(inference: Inference) -> tuple[RoutingChange, SelfContrast | None]:
    """The routing of the answers, and the weaker one that they are contrasted with."""
    routing = RoutingChange(
        router=inference.router,
        router_options=inference.router_options,
        top_k=inference.top_k,
        parts=inference.router_parts,
    )
    if inference.self_contrast is None:
        return routing, None
    return routing, SelfContrast.parse(inference.self_contrast)


def decoding_of(inference: Inference) -> tuple[int, Sampling | None]:
    """Beams, and how answers are drawn; ValueError for both."""
    num_beams = inference.num_beams or 1
    if inference.sampling is None:
        return num_beams, None
    if num_beams > 1:
        raise ValueError(
            f"num_beams={num_beams} and sampling: beams are searched, give one of them"
        )
    return num_beams, Sampling.parse(inference.sampling)


def _routings(configs: Mapping[str, MoEConfig]) -> dict[str, Record]:
    # Of a MoEConfig what an answer depends on; loss weights and seeds are of training.
    return {
        part: {"router": c.router, "router_options": c.router_options, "top_k": c.top_k}
        for part, c in configs.items()
    }
