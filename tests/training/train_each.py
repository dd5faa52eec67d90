"""Train by several recipes in one process, for test_zero_routers.py: importing takes longer.

    torchrun --nproc-per-node 2 -m tests.training.train_each OUTPUT RECIPE... -- FLAG...

Each recipe's run goes to OUTPUT/name of the recipe's file; its flags come last.
"""

import sys
from pathlib import Path

from llava_compete.__main__ import main


def train_each(argv: list[str]) -> None:
    """One training after the other; the first that fails ends them."""
    cut = argv.index("--")
    output, *recipes = argv[:cut]
    for recipe in recipes:
        main(["train", recipe, "--output_dir", f"{output}/{Path(recipe).stem}", *argv[cut + 1 :]])


if __name__ == "__main__":
    train_each(sys.argv[1:])
