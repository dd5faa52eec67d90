"""Features of a frozen image tower, made once for trainings that do not train it."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from llava_compete.cache_features import cache_features

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cache = cache_features(**vars(args), rank=rank, world_size=world_size)
    if cache is None:
        print(f"rank {rank}: its shards are there, other processes are still at theirs")
    else:
        info = cache.info
        print(
            f"{args.output}: {len(cache):,} pictures, {info.num_patches} x {info.width} "
            f"{info.dtype} each, {info.num_shards} shards"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete cache-features",
        description=f"{__doc__} Also under torchrun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint directory; only its image tower is read")
    add("data", type=Path, nargs="+", help="data files whose pictures are meant")
    add("--image_folder", type=Path, required=True, help="root of the rows' image files")
    add("--output", type=Path, required=True, help="folder; what is whole in it stays")
    add("--linked_folders", type=Path, nargs="*", default=[], help="as in training")
    add(
        "--exclude", type=Path, nargs="*", default=[], help="as in training, one for each data file"
    )
    add("--batch_size", type=int, default=32, help="pictures of a forward")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="tower and features")
    add("--num_workers", type=int, default=4, help="processes that open pictures")
    return parser
