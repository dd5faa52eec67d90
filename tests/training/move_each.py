"""Runs of one recipe under several ZeRO stages in one process a rank, for test_universal.py.

    torchrun --nproc-per-node N -m tests.training.move_each RECIPE OUTPUT NAME:CONFIG...

Each goes on from what lies in OUTPUT/NAME. CONFIG is none or a file of zero_configs/; those with
none come first, as accelerate does not give DeepSpeed up again.
"""

import sys

from llava_compete.__main__ import main
from tests.training.launches import REPOSITORY


def move_each(argv: list[str]) -> None:
    recipe, output, *runs = argv
    for name, config in (run.split(":") for run in runs):
        words = [recipe, "--output_dir", f"{output}/{name}", "--resume", "auto"]
        if config != "none":
            words += ["--deepspeed", str(REPOSITORY / "zero_configs" / f"{config}.json")]
        main(["train", *words])


if __name__ == "__main__":
    move_each(sys.argv[1:])
