"""Checkpoint of LLaVA-1.5 or of CompeteSMoE / LibMoE -> checkpoint directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    import torch

    from llava_compete.checkpoint import count_parameters, refuse_non_empty
    from llava_compete.foreign.imported import REPORT, build, save_imported
    from llava_compete.foreign.layouts import read_layout, read_tokenizer

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete import",
        description=__doc__,
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
    return parser
