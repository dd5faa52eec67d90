"""Memory of a training on each GPU, by ZeRO stage and batch size, from config.json alone."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="llava-compete plan",
        description=__doc__,
        usage="llava-compete plan RECIPE [--gpus N] [--gpu-memory GIB] [--key value ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("recipe", help="recipe of a training; flags that follow override its keys")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GiB of each")
    args, flags = parser.parse_known_args(argv)

    from llava_compete.plan import as_table, plan_of

    plan = plan_of([args.recipe, *flags], args.gpus, args.gpu_memory)
    print(as_table(plan, args.gpu_memory))
