"""Prepare data on disk.

python -m data_prep VERB [options]      (VERB --help lists the options of a verb)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Verb -> what it does. Each verb is the module of its name with a main(argv).
VERBS = {
    "fetch": "download the data sets of the three stages and the benchmarks",
    "check": "look at every row and every picture of a data file, repair, report, exclude",
    "normalise": "turn rows of other formats into LLaVA rows that train, with their lengths",
    "quickstart": "fetch small real weights and pictures, write training and test questions",
}


def main(argv: Sequence[str]) -> None:
    listing = "\n".join(f"  {verb:12} {what}" for verb, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Prepare data on disk.",
        epilog=f"verbs:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(argv)
    importlib.import_module(f"data_prep.{args.verb}").main(args.options)


if __name__ == "__main__":
    main(sys.argv[1:])
