"""Run an experiment: ``python -m experiments VERB [options]``."""

from collections.abc import Sequence

from experiments import VERBS
from llava_compete.program import Program

PROGRAM = Program("python -m experiments", "Run an experiment.", "experiments", VERBS)


def main(argv: Sequence[str] | None = None) -> None:
    call = PROGRAM.read(argv)
    call.main(call.words)


if __name__ == "__main__":
    main()
