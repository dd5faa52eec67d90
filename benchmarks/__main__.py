"""Run a benchmark.

python -m benchmarks NAME [options]      (NAME --help lists the options of a benchmark)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks import VERBS


def main(argv: Sequence[str]) -> None:
    listing = "\n".join(f"  {verb:18} {what}" for verb, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run a benchmark.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="NAME")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(argv)
    importlib.import_module(f"benchmarks.{args.verb}").main(args.options)


if __name__ == "__main__":
    main(sys.argv[1:])
