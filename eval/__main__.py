"""Evaluate a checkpoint; the verbs stand in ``eval/verbs``.

Exit status: 0 done, 1 a task lacks replies or samples, 2 the command cannot be carried out. Once a
run has begun, an error ends it with a traceback; the same command takes it up again. Started by
torchrun, ranks share the questions, and rank 0 waits for the others, scores and prints.
"""

import sys
from collections.abc import Sequence

from eval.verbs import VERBS
from llava_compete.program import Program

PROGRAM = Program(
    "python -m eval", "Ask checkpoints about pictures and score them.", "eval.verbs", VERBS
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb and give the exit status."""
    call = PROGRAM.read(argv)
    status: int = call.main(call.words)
    return status


if __name__ == "__main__":
    sys.exit(main())
