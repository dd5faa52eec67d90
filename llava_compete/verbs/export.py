"""Training checkpoint, ZeRO-3 shards too -> plain checkpoint directory, without a launcher."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    import torch

    from llava_compete.checkpoint import refuse_non_empty
    from llava_compete.training.export import FORMATS, export

    refuse_non_empty(args.output)
    dtype, write = getattr(torch, args.dtype), FORMATS[args.format]
    parameters = export(args.checkpoint, args.output, dtype=dtype, write=write)
    print(f"{args.output}: {parameters.total:,} parameters in {args.dtype}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete export",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint-N of a training, or its output directory")
    add("output", type=Path, help="directory to make")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of the parameters")
    add(
        "--format",
        default="llava_compete",
        choices=["llava_compete", "llava_hf"],
        help="llava_hf: transformers' LlavaForConditionalGeneration, where it has a place for all",
    )
    return parser
