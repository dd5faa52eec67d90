"""Run an experiment.

python -m experiments VERB [options]      (VERB --help lists the options of a verb)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from experiments import VERBS


def main(argv: Sequence[str]) -> None:
    listing = "\n".join(f"  {verb:18} {what}" for verb, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Run an experiment.",
        epilog=f"verbs:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(argv)
    importlib.import_module(f"experiments.{args.verb}").main(args.options)


if __name__ == "__main__":
    main(sys.argv[1:])
