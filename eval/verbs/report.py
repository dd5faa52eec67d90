"""Print the tables of runs, or write them with pictures and trainings into a report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.report import table
from eval.store import read_results


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.training and args.output is None:
            raise ValueError("--training goes into a written report: say where by --output OUTDIR")
        lines = _tables(args.runs) if args.output is None else _written(args)
        if args.wandb:
            from eval.wandb_tables import log_tables

            lines += map(str, log_tables(args.runs, args.data_root))
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(lines))
    return 0


def _tables(runs: list[Path]) -> list[str]:
    """Each run's table, and above them, where there are several, the runs side by side."""
    tables = [table(read_results(run)) for run in runs]
    if len(runs) == 1:
        return tables
    from eval.comparison import comparison
    from eval.rows import read
    from llava_compete.report.markdown import to_markdown

    parts = [f"## {run}\n\n{text}\n" for run, text in zip(runs, tables, strict=True)]
    return [to_markdown(list(comparison([read(run) for run in runs]))), *parts]


def _written(args: argparse.Namespace) -> list[str]:
    from eval.training_log import headlines
    from eval.training_report import write_report

    written = write_report(args.runs, args.training, args.output, args.data_root)
    lines = [line for directory in args.training for line in headlines(directory)]
    return [*lines, *map(str, written)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval report", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+")
    add("--output", type=Path, help="write report.html, report.md and scores.csv there instead")
    add(
        "--training", type=Path, nargs="+", default=[], metavar="DIR", help="of llava-compete train"
    )
    add("--wandb", action="store_true", help="also as wandb tables; on disk without an account")
    add("--data_root", type=Path, help="where the pictures lie now, if moved")
    return parser
