"""Score the stored replies of a run, without a model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.report import table
from eval.score import score_run, succeeded


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval score", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data_root", type=Path, help="where the questions lie now, if moved")
    args = parser.parse_args(argv)
    try:
        results = score_run(args.run, args.data_root)
    except ValueError as error:
        parser.error(str(error))
    print(table(results))
    return 0 if succeeded(results) else 1
