"""Write the files that servers and judges want of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval submit", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data_root", type=Path, help="where the questions lie now, if moved")
    args = parser.parse_args(argv)

    from eval.submissions import write_submissions

    try:
        written = write_submissions(args.run, args.data_root)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(map(str, written)))
    return 0
