"""Prepare data on disk: ``python -m data_prep VERB [options]``."""

from collections.abc import Sequence

from data_prep import VERBS
from llava_compete.program import Program

PROGRAM = Program("python -m data_prep", "Prepare data on disk.", "data_prep", VERBS)


def main(argv: Sequence[str] | None = None) -> None:
    call = PROGRAM.read(argv)
    call.main(call.words)


if __name__ == "__main__":
    main()
