"""What the routers of a checkpoint do with rows of a LLaVA file: routing.json, routing.html."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from llava_compete.routing.report import write_report

    for path in write_report(**vars(args)):
        print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete routing",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory with experts")
    add("data", type=Path, help="LLaVA .json or .jsonl file")
    add("--image_folder", type=Path, required=True, help="root of the rows' image files")
    add("--output", type=Path, required=True, help="directory for both files")
    add("--other", type=Path, default=None, help="checkpoint to compare the choices with")
    add("--rows", type=int, default=None, help="so many, evenly spread; None: all")
    add("--batch_size", type=int, default=4)
    add("--max_length", type=int, default=2048, help="longest sequence in tokens, as in training")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser
