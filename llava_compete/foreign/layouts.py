"""Whose layout a foreign checkpoint has: its files say."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_compete.foreign.hf_llava import import_hf_llava
from llava_compete.foreign.imported import Imported
from llava_compete.foreign.libmoe import import_libmoe, is_libmoe
from llava_compete.foreign.original_llava import (
    PROJECTOR_FILE,
    import_original_llava,
    is_original_llava,
)


class Layout(NamedTuple):
    """How checkpoints of one project lie in a folder."""

    name: str
    read: Callable[..., Imported]  # of the folder and of those flags that it takes
    flags: tuple[str, ...] = ()


HF_LLAVA = Layout("LLaVA in transformers' layout", import_hf_llava)
ORIGINAL_LLAVA = Layout(
    "LLaVA in its own layout", import_original_llava, ("language_model", "vision_weights")
)
LIBMOE = Layout("CompeteSMoE / LibMoE", import_libmoe, ("top_k", "router", "vision_weights"))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; ValueError where only an absent package could read it."""
    alone = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    if alone and importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            f"{folder} has a tokenizer.model and no tokenizer.json: `pip install sentencepiece`, "
            f"or give --tokenizer, a folder with the same tokenizer's tokenizer.json"
        )
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def read_layout(folder: Path) -> Layout:
    """The layout of a folder; ValueError where it is none that is read."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: a checkpoint's folder is read")
    values: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    if values.get("model_type") == "llava" and "text_config" in values:
        return HF_LLAVA
    if is_original_llava(values):
        alone = (folder / PROJECTOR_FILE).is_file()
        return LIBMOE if not alone and is_libmoe(folder) else ORIGINAL_LLAVA
    raise ValueError(
        f"{folder} has model_type {values.get('model_type')!r} and neither text_config nor "
        f"mm_vision_tower in its config.json: read are {HF_LLAVA.name}, {ORIGINAL_LLAVA.name} and "
        f"{LIBMOE.name}"
    )
