"""Files of tensors, read so that nothing in them runs and none reaches outside its folder."""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# A folder's weights, in the order in which they are looked for.
LAYOUTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def read_index(index: Path) -> dict[str, str]:
    """Tensor -> file of an index of shards; ValueError where a file is not beside the index."""
    try:
        found = json.loads(index.read_text())["weight_map"]
        files = dict(found)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index} is no index of weights: {error!r}") from error
    for key, name in files.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(
                f"{index}: {key} is said to stand in {name!r}; only the name of a file beside the "
                f"index is read"
            )
    return files


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickled one, read with ``weights_only``.

    ValueError for a file that is damaged, that would run code, or that holds anything but tensors
    by name.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Only the zip format, torch's since 1.6, can be mapped.
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"{file} cannot be read as weights (pickled code is never run, and a TorchScript "
            f"archive is not supported): {error}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file} does not hold tensors by name")
    return state


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder in transformers' layout, in one file or in shards with their index.

    ValueError where there are none, where a shard is missing, and where a shard does not hold
    exactly what the index says.
    """
    layout = next((name for name in LAYOUTS if (folder / name).is_file()), None)
    if layout is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(LAYOUTS)} is there")
    if not layout.endswith(".index.json"):
        return read_weights(folder / layout)
    files = read_index(folder / layout)
    state: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is incomplete: {layout} names {name}, which is not there")
        shard = read_weights(folder / name)
        said = {key for key, file in files.items() if file == name}
        if differing := sorted(set(shard) ^ said):
            raise ValueError(
                f"{folder / name} and {layout} differ in {len(differing)} tensors, "
                f"{differing[:3]} among them"
            )
        state |= shard
    return state
