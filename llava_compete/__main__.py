"""The command line: ``llava-compete VERB ...`` or ``python -m llava_compete VERB ...``."""

import sys
from collections.abc import Sequence

from llava_compete.program import Program
from llava_compete.verbs import VERBS

PROGRAM = Program(
    "llava-compete",
    "Compose, upcycle, count and train LLaVA-style models with mixtures of experts. "
    "Evaluation: python -m eval. Data: python -m data_prep.",
    "llava_compete.verbs",
    VERBS,
)


def main(argv: Sequence[str] | None = None) -> None:
    call = PROGRAM.read(argv)
    try:
        work = call.main(call.words)
    except (ValueError, OSError) as error:  # transformers says OSError where a model is not found
        sys.exit(f"llava-compete {call.verb}: error: {error}")
    if work is not None:
        # Outside the try: a failure in the middle of training keeps its traceback.
        work()


if __name__ == "__main__":
    main()
