"""Undisturbed and resumed runs of several recipes in one process a rank, for test_resume.py.

    torchrun --nproc-per-node N -m tests.training.resume_each OUTPUT SAVED RECIPE... -- CONFIG...

Every recipe runs without DeepSpeed and then with each CONFIG, to OUTPUT/STAGE/CONFIG/whole; then
again from checkpoint-SAVED alone, in OUTPUT/STAGE/CONFIG/again.
"""

import random
import shutil
import sys
from pathlib import Path

import torch
from accelerate.utils import wait_for_everyone

from llava_compete.__main__ import main


def run_each(argv: list[str]) -> None:
    cut = argv.index("--")
    output, saved, *recipes = argv[:cut]
    for config in ("none", *argv[cut + 1 :]):
        flags = [] if config == "none" else ["--deepspeed", config]
        for recipe in recipes:
            folder = Path(output, Path(recipe).stem, Path(config).stem)
            whole, again = folder / "whole", folder / "again"
            main(["train", recipe, "--output_dir", str(whole), *flags])
            if torch.distributed.get_rank() == 0 if torch.distributed.is_initialized() else True:
                shutil.copytree(whole / f"checkpoint-{saved}", again / f"checkpoint-{saved}")
            wait_for_everyone()
            torch.manual_seed(99)  # nothing of the run before is left
            random.seed(99)
            main(["train", recipe, "--output_dir", str(again), "--resume", "auto", *flags])


if __name__ == "__main__":
    run_each(sys.argv[1:])
