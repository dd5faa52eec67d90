"""Checkpoint with low-rank adapters -> the same model without, their sum in its weights."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from llava_compete.checkpoint import load, refuse_non_empty, save
    from llava_compete.lora import merge_lora

    refuse_non_empty(args.output)
    model, processor = load(args.checkpoint, dtype=args.dtype)
    merged = merge_lora(model)
    save(model, processor, args.output)
    print(f"{args.output}: {merged} adapters merged")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-compete merge", description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory of a training with lora")
    add("--output", type=Path, required=True)
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the sums, too")
    return parser
