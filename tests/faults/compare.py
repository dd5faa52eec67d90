"""Is a disturbed run, continued to its end, bit by bit the undisturbed one?"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from llava_compete.training.states import load_pickled
from tests.faults.runs import STEPS

TIMED = {"step_seconds"}  # of a log line
TENSOR_FILES = {".pt", ".pth", ".bin"}


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Where weights, logged values, optimizer, schedule or random states differ."""
    last = f"checkpoint-{STEPS}"
    return [
        *_differ("log", _log(run), _log(undisturbed)),
        *_differ(
            "weights",
            load_file(run / "model.safetensors"),
            load_file(undisturbed / "model.safetensors"),
        ),
        *_differ(last, _states(run / last), _states(undisturbed / last)),
    ]


def _log(output: Path) -> list[dict[str, float]]:
    """Every logged value but times and the sums over the whole training."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [
        {name: value for name, value in line.items() if name not in TIMED}
        for line in history
        if "loss" in line
    ]


def _states(checkpoint: Path) -> dict[str, Any]:
    """What each tensor file of a checkpoint holds."""
    states: dict[str, Any] = {}
    for path in sorted(checkpoint.rglob("*")):
        name = str(path.relative_to(checkpoint))
        if path.suffix in TENSOR_FILES:
            with safe_globals():  # numpy's arrays in random states
                states[name] = load_pickled(path)
        elif path.suffix == ".safetensors":
            states[name] = load_file(path)
    return states


def _differ(place: str, ours: Any, theirs: Any) -> Iterator[str]:
    if type(ours) is not type(theirs):
        yield f"{place}: {type(ours).__name__} is not {type(theirs).__name__}"
    elif isinstance(ours, Mapping):
        if ours.keys() != theirs.keys():
            yield f"{place}: only in one: {sorted(map(str, ours.keys() ^ theirs.keys()))}"
        for key in ours.keys() & theirs.keys():
            yield from _differ(f"{place}/{key}", ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield f"{place}: {len(ours)} entries are not {len(theirs)}"
        for index, pair in enumerate(zip(ours, theirs, strict=False)):
            yield from _differ(f"{place}/{index}", *pair)
    elif isinstance(ours, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield f"{place}: tensors differ"
    elif isinstance(ours, np.ndarray):
        if not np.array_equal(ours, theirs):
            yield f"{place}: arrays differ"
    elif type(ours).__module__.startswith("deepspeed"):
        yield from _differ(place, vars(ours), vars(theirs))
    elif ours != theirs:
        yield f"{place}: {ours} is not {theirs}"
