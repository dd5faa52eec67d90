"""What a training checkpoint holds of each parameter, whichever ZeRO stage and world wrote it.

DeepSpeed's stages 1 and 2 write of each rank a flat vector a parameter group, with where in it
which piece of which parameter lies; stage 3 a flat vector a sub-group, in which every parameter has
an equal share, the last rank's padded. Without DeepSpeed there are safetensors and optimizer.pt.
Pickled files are read with ``weights_only``, three classes of DeepSpeed allowed, and mapped into
memory, so that opening a checkpoint reads none of its tensors.
"""

import math
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_compete.checkpoint import weight_files

OPTIMIZER = "optimizer.pt"
ALLOWED = (LossScaler, ZeroStageEnum, fragment_address)  # what DeepSpeed pickles beside tensors
TAG = re.compile(r"global_step\d+")
RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_(?:model|optim)_states\.pt$")
MASTER = "master"  # a parameter's float32 copy, beside the optimizer's own names for its states


class Layout(NamedTuple):
    """How the states of a training lie."""

    zero_stage: int  # 0: without DeepSpeed
    world_size: int


class States(ABC):
    """Weights and optimizer states by the parameter's name, whole, on the CPU."""

    layout: Layout
    names: tuple[str, ...]  # of all parameters and buffers, tied ones once or more
    trained: frozenset[str]  # names that the optimizer has

    @abstractmethod
    def weight(self, name: str) -> Tensor:
        """A trained parameter in float32, any other and a buffer in the dtype it had."""

    @abstractmethod
    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """Of a trained parameter: tensors of its shape, and scalars such as ``step``; else {}."""


def open_states(checkpoint: Path, trained: Sequence[str] = ()) -> States:
    """The states of a training checkpoint; ValueError where files are missing or damaged.

    ``trained`` are the optimizer's parameters in its order, which a checkpoint without DeepSpeed
    does not name; without them its weights alone are there.
    """
    if folder := deepspeed_folder(checkpoint):
        return ShardedStates(folder)
    return PlainStates(checkpoint, trained)


def deepspeed_folder(checkpoint: Path) -> Path | None:
    """Where DeepSpeed wrote below a checkpoint; None where it did not.

    ValueError where ``latest``, which DeepSpeed follows, names none of its folders.
    """
    found = list(checkpoint.glob("global_step*"))
    if not found:
        return None
    latest = checkpoint / "latest"
    tag = latest.read_text().strip() if latest.is_file() else ""
    if not TAG.fullmatch(tag) or checkpoint / tag not in found:
        raise ValueError(
            f"{latest} says {tag!r}, which is none of {sorted(path.name for path in found)}"
        )
    return checkpoint / tag


def load_pickled(file: Path) -> Any:
    """A pickled file of tensors, mapped; ValueError where it is damaged or holds other classes."""
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is damaged or holds what a training does not write: {reason}"
        ) from error


def refuse_foreign_pickles(checkpoint: Path) -> None:
    """ValueError where a file that DeepSpeed would unpickle freely names a class not in ALLOWED."""
    if folder := deepspeed_folder(checkpoint):
        for file in sorted(folder.glob("*.pt")):
            load_pickled(file)


class PlainStates(States):
    """Without DeepSpeed: safetensors, and torch's optimizer, which counts its parameters."""

    def __init__(self, checkpoint: Path, trained: Sequence[str]) -> None:
        self._files: dict[str, Any] = {}
        for name in weight_files(checkpoint):
            try:
                opened = safe_open(checkpoint / name, "pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{checkpoint / name} cannot be read: {error}") from error
            self._files |= dict.fromkeys(opened.keys(), opened)
        self.names = tuple(self._files)
        ranks = len(list(checkpoint.glob("rng_state_*.pth")))
        self.layout = Layout(zero_stage=0, world_size=max(ranks, 1))
        self.trained = frozenset(trained)
        self._states: dict[str, dict[str, Tensor]] = {}
        if not trained:
            return
        saved = load_pickled(checkpoint / OPTIMIZER)
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        if len(numbers) != len(trained):
            raise ValueError(
                f"{checkpoint / OPTIMIZER} has {len(numbers)} parameters, this training has "
                f"{len(trained)}: resume with the same trainable parts"
            )
        for number, name in zip(numbers, trained, strict=True):
            self._states[name] = saved["state"].get(number, {})

    def weight(self, name: str) -> Tensor:
        value = self._files[name].get_tensor(name)
        return value.float() if name in self.trained else value

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        return self._states.get(name, {})


class Piece(NamedTuple):
    """Elements of a parameter in a rank's flat vector of a group."""

    rank: int
    group: int
    start: int
    numel: int


class ShardedStates(States):
    """DeepSpeed's: each parameter put together from its ranks' pieces."""

    def __init__(self, folder: Path) -> None:
        optimizers = [load_pickled(file) for file in _by_rank(folder, "optim")]
        optimizers = [saved["optimizer_state_dict"] for saved in optimizers]
        stage = int(optimizers[0]["zero_stage"])
        self.layout = Layout(stage, len(optimizers))
        if (world := _world_size(optimizers[0])) != len(optimizers):
            raise ValueError(f"{folder} has {len(optimizers)} optimizer files, {world} were saved")
        self._models = [load_pickled(file) for file in _by_rank(folder, "model", stage, world)]
        model = self._models[0]
        self._groups = [_flat_groups(saved, stage) for saved in optimizers]
        self._shapes: dict[str, torch.Size] = {
            name: shape for group in model["param_shapes"] for name, shape in group.items()
        }
        self._pieces = (
            _pieces_by_share(model["param_shapes"], world)
            if stage == 3
            else _pieces_by_mapping([saved["param_slice_mappings"] for saved in optimizers])
        )
        self._frozen: Mapping[str, torch.Size] = model["frozen_param_shapes"] or {}
        self.names = tuple(model["module"])
        self.trained = frozenset(self._shapes)

    def weight(self, name: str) -> Tensor:
        if name in self.trained:
            return self._whole(name, MASTER)
        model = self._models[0]
        if name not in self._frozen:
            return model["module"][name]
        shape = self._frozen[name]
        parts = [saved["frozen_param_fragments"][name].flatten() for saved in self._models]
        return torch.cat(parts)[: shape.numel()].view(shape)

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        if name not in self.trained:
            return {}
        first = self._pieces[name][0]
        found = {}
        for key, value in self._groups[first.rank][first.group].items():
            if key == MASTER:
                continue
            if torch.is_tensor(value) and value.dim():
                found[key] = self._whole(name, key)
            else:  # one of all parameters of a group, which torch's optimizers count up in place
                found[key] = torch.as_tensor(value).clone()
        return found

    def _whole(self, name: str, key: str) -> Tensor:
        parts = []
        for piece in self._pieces[name]:
            flat = self._groups[piece.rank][piece.group]
            if flat[key].dim() != 1 or len(flat[key]) < len(flat[MASTER]):  # a padding may be left
                raise ValueError(
                    f"the optimizer's {key} is not an element a weight: its states cannot be moved "
                    f"to another layout"
                )
            parts.append(flat[key].narrow(0, piece.start, piece.numel))
        shape = self._shapes[name]
        return torch.cat(parts)[: math.prod(shape)].view(shape)


def _by_rank(folder: Path, kind: str, stage: int = 3, world_size: int | None = None) -> list[Path]:
    """Files of the ranks in their order; the model of stages 1 and 2 is in one file."""
    if kind == "model" and stage < 3:
        return [folder / "mp_rank_00_model_states.pt"]
    found = {
        int(match[1]): path
        for path in folder.glob(f"*_{kind}_states.pt")
        if (match := RANK.search(path.name))
    }
    if not found or sorted(found) != list(range(world_size or len(found))):
        raise ValueError(f"{folder} lacks {kind}_states files: it has those of {sorted(found)}")
    return [found[rank] for rank in sorted(found)]


def _world_size(saved: Mapping[str, Any]) -> int:
    counts = saved["partition_count"]
    return max(counts) if isinstance(counts, list) else counts


def _flat_groups(saved: Mapping[str, Any], stage: int) -> list[dict[str, Tensor]]:
    """Of each group: its float32 weights and what the optimizer keeps of them, flat."""
    optimizer = saved["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]
    weights = saved["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"]
    states = optimizer["state"]
    return [
        {MASTER: flat.detach(), **states.get(number, {})} for number, flat in enumerate(weights)
    ]


def _pieces_by_mapping(mappings: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Piece]]:
    pieces: dict[str, list[Piece]] = {}
    for rank, groups in enumerate(mappings):
        for group, addresses in enumerate(groups):
            for name, address in addresses.items():
                piece = Piece(rank, group, address.start, address.numel)
                pieces.setdefault(name, []).append(piece)
    return pieces


def _pieces_by_share(
    groups: Iterable[Mapping[str, torch.Size]], world_size: int
) -> dict[str, list[Piece]]:
    pieces: dict[str, list[Piece]] = {}
    for group, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            share = -(-math.prod(shape) // world_size)
            pieces[name] = [Piece(rank, group, start, share) for rank in range(world_size)]
            start += share
    return pieces
