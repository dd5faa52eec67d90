"""Run a benchmark: ``python -m benchmarks VERB [options]``."""

from collections.abc import Sequence

from benchmarks import VERBS
from llava_compete.program import Program

PROGRAM = Program("python -m benchmarks", "Run a benchmark.", "benchmarks", VERBS)


def main(argv: Sequence[str] | None = None) -> None:
    call = PROGRAM.read(argv)
    call.main(call.words)


if __name__ == "__main__":
    main()
