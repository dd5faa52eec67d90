"""The verb ``import``: which layout a folder has is read from its files."""

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_compete.checkpoint import count_parameters, refuse_non_empty
from llava_compete.foreign.hf_llava import import_hf_llava
from llava_compete.foreign.imported import REPORT, Imported, build, save_imported
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


def import_verb(argv: Sequence[str]) -> None:
    """Checkpoint of LLaVA-1.5 or of CompeteSMoE / LibMoE -> checkpoint directory."""
    parser = argparse.ArgumentParser(
        prog="llava-compete import",
        description=import_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, help="folder of the checkpoint")
    add("output", type=Path, help="directory to make")
    add(
        "--language_model",
        type=Path,
        default=None,
        help="folder of the language model that an mm_projector.bin alone belongs to",
    )
    add(
        "--vision_weights",
        default=None,
        help="where the source has no image tower: a folder of transformers, a file of open_clip, "
        "or a published tag of it; or a folder whose config.json describes the source's tower",
    )
    add("--top_k", type=int, default=None, help="experts of a token; None: of config.json")
    add("--router", default=None, help="of imported experts, a name in ROUTERS; None: compete")
    add("--tokenizer", type=Path, default=None, help="its folder; None: the language model's own")
    add("--chat_format", default=None, help="None: by the tokenizer's own tokens, else vicuna")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args(argv)

    refuse_non_empty(args.output)
    layout = read_layout(args.source)
    names = ("language_model", "vision_weights", "top_k", "router")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if foreign := [name for name in given if name not in layout.flags]:
        raise ValueError(f"{args.source} is {layout.name}, which takes no --{foreign[0]}")
    imported = layout.read(args.source, **given)
    tokenizer = read_tokenizer(args.tokenizer or args.language_model or args.source)
    model, processor = build(
        imported, tokenizer, dtype=getattr(torch, args.dtype), format_name=args.chat_format
    )
    save_imported(model, processor, imported.report, args.output)
    print(
        f"{args.output}: {layout.name}, {type(model.language_model).__name__}, "
        f"{count_parameters(model).total:,} parameters; {imported.report.summary()} ({REPORT})"
    )


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
