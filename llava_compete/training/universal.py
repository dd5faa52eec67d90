"""Go on from a checkpoint that another number of processes or another ZeRO stage wrote.

DeepSpeed's own universal checkpoint is a second copy of the checkpoint on disk, knows no training
without DeepSpeed, and under stage 3 gives all parameter groups the learning rate and weight decay
of the first (deepspeed 0.19, ``load_hp_checkpoint_state_from_checkpoint_dir_stage3``). Here every
rank reads its share out of the files as they are, mapped into memory, a module at a time.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from llava_compete.training.manifest import read_manifest
from llava_compete.training.saving import zero_stage
from llava_compete.training.states import Layout, States, load_pickled, open_states

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler.pt"


def is_moved(args: TrainingArguments, checkpoint: str | Path | None) -> bool:
    """Was ``checkpoint`` written under another ZeRO stage or, with DeepSpeed, other ranks?"""
    if checkpoint is None:
        return False
    manifest = read_manifest(Path(checkpoint))
    saved = Layout(manifest.zero_stage, manifest.world_size)
    now = Layout(zero_stage(args), args.world_size)
    return saved != now and (saved.zero_stage, now.zero_stage) != (0, 0)


def load_weights(model: PreTrainedModel, states: States) -> None:
    """Parameters and buffers of ``model``, sharded or not; ValueError where one is not there.

    A module at a time, by its own way of loading: its weights may be in 4 bits.
    """
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    needed = [name for name in model.state_dict() if name not in tied]
    if missing := [name for name in needed if name not in states.names]:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights: {missing[:5]}")
    own: dict[str, list[str]] = defaultdict(list)
    for name in needed:
        own[name.rpartition(".")[0]].append(name)
    for place, names in own.items():
        module = model.get_submodule(place)
        sharded = list(module.parameters(recurse=False))
        with torch.no_grad(), deepspeed.zero.GatheredParameters(sharded, modifier_rank=0):
            values = {name.rpartition(".")[2]: states.weight(name) for name in names}
            module.load_state_dict(values, strict=False)


def load_states(trainer: "LlavaTrainer", checkpoint: Path) -> None:
    """Weights, optimizer and schedule of a moved checkpoint, into a trainer ready to train.

    Bit for bit what was saved; under DeepSpeed in a smaller dtype the float32 copies are. Random
    states are the resumed rank's own where it had a rank of its number before.
    """
    names = _in_optimizer_order(trainer)
    states = open_states(checkpoint, names)
    load_weights(trainer.model, states)
    _check_trained(names, states)
    optimizer = trainer.optimizer
    assert optimizer is not None
    if trainer.is_deepspeed_enabled:
        _fill_deepspeed(trainer, names, states)
    else:
        filled = dict(enumerate(states.optimizer_state(name) for name in names))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": filled, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(load_pickled(checkpoint / SCHEDULER))
    rates = trainer.lr_scheduler.get_last_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    if trainer.is_world_process_zero():
        now = Layout(zero_stage(trainer.args), trainer.args.world_size)
        logger.warning(
            "%s was written by %s, this run has %s: its states are moved",
            *(checkpoint, _in_words(states.layout), _in_words(now)),
        )


class Place(NamedTuple):
    """Where elements of a parameter lie in a flat vector of this rank."""

    flat: Tensor
    start: int  # in the vector
    first: int  # of the parameter
    numel: int


def _fill_deepspeed(trainer: "LlavaTrainer", names: list[str], states: States) -> None:
    """Float32 copies and optimizer states of this rank's share; the engine's counters."""
    engine = trainer.model_wrapped
    base = engine.optimizer.optimizer
    parameters = dict(trainer.model.named_parameters())
    for name in names:
        place = _place(engine.optimizer, parameters[name])
        if place is None:
            continue
        _put(place, place.flat.data, states.weight(name))
        kept = base.state[place.flat]
        for key, value in states.optimizer_state(name).items():
            if torch.is_tensor(value) and value.dim():
                _put(place, kept.setdefault(key, torch.zeros_like(place.flat.data)), value)
            else:
                kept[key] = _scalar(base.defaults, place.flat, value)
    engine.global_steps = trainer.state.global_step
    engine.global_samples = engine.global_steps * engine.train_batch_size()


def _put(place: Place, flat: Tensor, value: Tensor) -> None:
    part = value.flatten()[place.first : place.first + place.numel]
    flat.narrow(0, place.start, part.numel()).copy_(part)  # a padding's rest stays zero


def _place(optimizer: Any, parameter: Any) -> Place | None:
    """None: no element of the parameter is this rank's."""
    if hasattr(parameter, "ds_id"):
        group, start, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return Place(flat, start, numel * torch.distributed.get_rank(), numel)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = optimizer.optimizer.param_groups[mapping.param_group_index]["params"][0]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Place(flat, here.start, there.start, there.numel)


def _scalar(defaults: Mapping[str, Any], flat: Tensor, value: Tensor | float) -> Tensor:
    """A state such as the step, where torch's optimizers want it."""
    on_device = defaults.get("fused") or defaults.get("capturable")
    device = flat.device if on_device else torch.device("cpu")
    return torch.as_tensor(value, dtype=torch.float32).to(device, copy=True)


def _in_optimizer_order(trainer: "LlavaTrainer") -> list[str]:
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.parameter_groups()
    return [names[parameter] for group in groups for parameter in group["params"]]


def _check_trained(names: list[str], states: States) -> None:
    if differing := sorted(states.trained.symmetric_difference(names)):
        raise ValueError(
            f"the checkpoint and this training differ in {len(differing)} trained parameters, "
            f"{differing[:3]} among them: resume with the same trainable parts"
        )


def _in_words(layout: Layout) -> str:
    stage = f"ZeRO-{layout.zero_stage}" if layout.zero_stage else "no DeepSpeed"
    return f"{layout.world_size} process(es) with {stage}"
