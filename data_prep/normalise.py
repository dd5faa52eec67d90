"""Turn rows of other formats into LLaVA rows that train, with their lengths.

python -m data_prep normalise INPUT OUTPUT --checkpoint DIR [options]

INPUT is .json, .jsonl, .parquet, .csv or .tsv in the format llava, sharegpt, openai or vqa; OUTPUT
is .jsonl or .parquet. Beside it stand OUTPUT.dropped.jsonl, each row that cannot be used with the
reason and its content, and OUTPUT.stats.json.

Exit status: 0 done; 1 no row is left, or with --strict a row was dropped (the files are written all
the same); 2 refused, no file is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.normalising.options import ANSWERS, COLUMNS, FORMATS, Table

if TYPE_CHECKING:
    from data_prep.normalising.stats import Stats
    from data_prep.normalising.work import Dropped, Kept, Settings

FIRST_ROWS = 100  # by which the format and the columns of JSON are known
MAX_WORKERS = 16  # one process reads and writes for all
OUTPUT_SUFFIXES = (".jsonl", ".parquet")


def main(argv: Sequence[str]) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        stats = run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{args.output}: {stats.summary()}")
    if not stats.written or (args.strict and stats.dropped):
        sys.exit(1)


def run(args: argparse.Namespace) -> Stats:
    """Write OUTPUT and what stands beside it; ValueError where that cannot be."""
    from transformers import LlavaProcessor

    from data_prep.normalising import files
    from data_prep.normalising.stats import measured_by
    from data_prep.normalising.work import normalise
    from llava_compete.checkpoint import read_config

    _check_places(args)
    config = read_config(args.checkpoint, weights=False)
    processor = LlavaProcessor.from_pretrained(args.checkpoint)
    rows = files.read(args.input)
    first = list(itertools.islice(rows, FIRST_ROWS))
    settings = _settings(args, first)
    results = normalise(itertools.chain(first, rows), settings, processor, args.workers)
    facts = {
        "input": str(args.input),
        "format": settings.format,
        "max_length": args.max_length,
        "measured_by": measured_by(processor, config)._asdict(),
    }
    return write(results, args.output, facts, total=files.count_rows(args.input))


def write(
    results: Iterable[Kept | Dropped],
    output: Path,
    facts: dict[str, object],
    *,
    total: int | None = None,
) -> Stats:
    """Write rows, dropped rows and counts aside, then give them their names, OUTPUT's last."""
    from tqdm import tqdm

    from data_prep.normalising.files import RowWriter, dropped_line
    from data_prep.normalising.stats import Stats
    from data_prep.normalising.work import Dropped

    stats = Stats()
    paths = [Path(f"{output}{end}") for end in (".dropped.jsonl", ".stats.json", "")]
    dropped_part, stats_part, rows_part = parts = [Path(f"{path}.part") for path in paths]
    bar = tqdm(results, desc=output.name, total=total, unit=" rows", disable=None)
    try:
        with RowWriter(rows_part, output.suffix) as rows, dropped_part.open("w") as dropped:
            for result in bar:
                stats.add(result)
                if isinstance(result, Dropped):
                    dropped.write(dropped_line(*result))
                else:
                    rows.write(result.row)
        stats_part.write_text(json.dumps({**facts, **stats.to_dict()}, indent=1) + "\n")
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return stats


def _settings(args: argparse.Namespace, first: list[dict]) -> Settings:
    from data_prep.formats import detect
    from data_prep.normalising import files
    from data_prep.normalising.images import Place
    from data_prep.normalising.vqa import check_columns, parse_columns
    from data_prep.normalising.work import Settings

    table = Table(parse_columns(args.columns), args.answer_is, args.instruction)
    columns = files.columns(args.input, first)
    check_columns(table.columns, columns)
    return Settings(
        checkpoint=args.checkpoint,
        format=detect(first, columns, table) if args.format == "auto" else args.format,
        table=table,
        place=Place(args.image_folder, args.output.stem),
        id_stem=args.input.stem,
        source=args.source,
        max_length=args.max_length,
    )


def _check_places(args: argparse.Namespace) -> None:
    if args.output.suffix not in OUTPUT_SUFFIXES:
        raise ValueError(f"output {args.output} must end in {' or '.join(OUTPUT_SUFFIXES)}")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"output {args.output} exists: name another or give --overwrite")
    if args.output.resolve() == args.input.resolve():
        raise ValueError(f"output {args.output} is the input: name another")
    if args.image_folder is not None and not args.image_folder.is_dir():
        raise ValueError(f"image_folder {args.image_folder} is not a directory")
    args.output.parent.mkdir(parents=True, exist_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep normalise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT")
    add("output", type=Path, metavar="OUTPUT")
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="directory whose tokenizer and tower the lengths are for; its weights are not read",
    )
    add(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="of INPUT; auto: by its columns and first rows",
    )
    add(
        "--image_folder",
        type=Path,
        help="root of the images; pictures that rows hold themselves are written below it, into "
        "a folder of OUTPUT's name",
    )
    add("--source", help="name of the data set for counts; default: the row's own or its folder")
    add(
        "--max_length",
        type=_positive,
        help="drop rows that a training with it refuses, count those that it cuts",
    )
    cores = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    add("--workers", type=_positive, default=cores, help=f"processes; default: cores, here {cores}")
    add("--strict", action="store_true", help="exit with 1 where a row was dropped")
    add("--overwrite", action="store_true", help="replace OUTPUT and what stands beside it")
    table = parser.add_argument_group("tables of questions (vqa)")
    table.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help=f"where a row has its {', '.join(COLUMNS)}; image, answer and options may be several "
        f"columns, NAME=A,B,C",
    )
    table.add_argument(
        "--answer_is",
        choices=ANSWERS,
        default="auto",
        help="what names the right option; an index counts from 0; auto: what fits, and a row "
        "where two fit is dropped",
    )
    table.add_argument(
        "--instruction",
        help="a line after every question; default: LLaVA's where there are options, else none",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)
