"""Start a training by a recipe, stop before its first step, print the time of each phase.

    python -m benchmarks.first_step RECIPE

One line of JSON: processor seconds by phase, in order, from the start of the process.
"""

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

PHASES = ("imports", "recipe, model, rows", "trial save, loader, optimizer")


class FirstStepError(Exception):
    """The first step is about to begin."""


def main(argv: Sequence[str]) -> None:
    from transformers import TrainerCallback

    from llava_compete.training.prepare import prepare, run

    marks = [0.0, time.process_time()]

    class Stop(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())
            raise FirstStepError

    trainer, _ = prepare(argv)
    marks.append(time.process_time())
    trainer.add_callback(Stop())
    try:
        run(trainer, None)
    except FirstStepError:
        took = (after - before for before, after in pairwise(marks))
        print(json.dumps(dict(zip(PHASES, took, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
