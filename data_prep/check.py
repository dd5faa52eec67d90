"""Check a data file and its pictures before anything is trained on them.

python -m data_prep check JSON --root DIR [--repair] [--drop FILE]

Every row's turns, every picture decoded whole, rows and pictures that are there twice, the counts
of the known split. Ends with 0 where no fault is left, with 1 where some are, with 2 where the data
file cannot be read. A check that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.checking import compare, report, scan, summary
from data_prep.checking.journal import Journal
from data_prep.checking.repair import carry_out, repair_of
from data_prep.checking.splits import KNOWN_FILES, SPLITS
from llava_compete.data.aside import written_aside
from llava_compete.data.exclude import Exclusion, sha256_of, write_exclusions
from llava_compete.data.images import ImageFolder

log = logging.getLogger(__name__)

VERSION = 1
FAULTS, NOTES, REPAIRS, REPORT = "faults.jsonl", "notes.jsonl", "repairs.jsonl", "report.json"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is checked and how; see ``--help``."""

    file: Path
    root: Path
    linked_folders: tuple[Path, ...] = ()
    report: Path
    repair: bool = False
    drop: Path | None = None
    split: str | None = None
    unique_ids: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1")
        if not self.root.is_dir():
            raise ValueError(f"root={self.root} is not a folder: it must hold the pictures")


def main(argv: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        found = run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"python -m data_prep check: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from error
    print(summary.as_text(found))
    raise SystemExit(1 if found["faults_left"] else 0)


def parse(argv: Sequence[str]) -> Check:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="JSON", help="rows: .json, .jsonl or .parquet")
    add("--root", type=Path, required=True, help="the folder that image names are relative to")
    add("--linked_folder", type=Path, action="append", default=[], help="links may lead there")
    add("--report", type=Path, help="where the lists go; default: JSON.check beside the file")
    add("--repair", action="store_true", help="give pictures named .jpg the JPEG they lack")
    add("--drop", type=Path, metavar="FILE", help="write the faulty rows as an exclusion file")
    add("--expect", choices=sorted(SPLITS), help="rows per source that the file must have")
    add("--unique_ids", action="store_true", help="a repeated id is a fault, not a note")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    args = parser.parse_args(argv)
    return Check(
        file=args.file,
        root=args.root,
        linked_folders=tuple(args.linked_folder),
        report=args.report or args.file.with_name(f"{args.file.name}.check"),
        repair=args.repair,
        drop=args.drop,
        split=args.expect or KNOWN_FILES.get(args.file.name),
        unique_ids=args.unique_ids,
        workers=args.workers,
    )


def run(check: Check) -> dict[str, Any]:
    """Check, repair if asked to, write the report's folder; gives what report.json holds."""
    with scan.worker_pool(check.workers) as pool:
        sha256 = sha256_of(check.file)
        check.report.mkdir(parents=True, exist_ok=True)
        with Journal(check.report / f"journal-{_key(check, sha256)}.jsonl") as journal:
            if journal.num_rows:
                log.info("%s: going on after %d chunks", journal.path, journal.num_chunks)
            else:
                journal.begin(scan.count_rows(check.file))
            begin, done = time.monotonic(), journal.num_chunks * scan.CHUNK_ROWS
            scan.scan(check.file, check.root, check.linked_folders, journal, pool)
            seconds = time.monotonic() - begin
            rows = max(0, journal.num_rows - done)
            log.info("%d rows in %.1f s, %.0f rows/s", rows, seconds, rows / seconds)
            found = _conclude(check, sha256, journal)
            journal.remove()
    return found


def _key(check: Check, sha256: str) -> str:
    """What the findings of two checks must share for one to go on with the other's."""
    folders = [str(folder.resolve()) for folder in (check.root, *check.linked_folders)]
    values = [VERSION, sha256, check.file.suffix, folders, check.repair]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _conclude(check: Check, sha256: str, journal: Journal) -> dict[str, Any]:
    """Repair, compare, and write everything that the finished ``journal`` leads to."""
    repairs = [repair_of(p) for chunk in journal for p in chunk.pictures if p.beside]
    if check.repair:
        images = ImageFolder(check.root, check.linked_folders)
        repairs = [carry_out(images, r) for r in tqdm(repairs, desc="repairing", disable=None)]
    doubles = compare.compare(journal)
    repaired = {repair.file for repair in repairs if repair.status == "done"}
    found = report.Found(journal, doubles, repaired, check.unique_ids)
    counts = summary.rows_by_source(journal)
    faults, notes = summary.Tally(), summary.Tally()
    in_all = itertools.chain(summary.count_faults(counts, check.split), report.faults(found))
    _write_lines(check.report / FAULTS, faults.watch(in_all))
    _write_lines(check.report / NOTES, notes.watch(report.notes(found)))
    _write_lines(check.report / REPAIRS, (repair._asdict() for repair in repairs))
    statuses = Counter(repair.status for repair in repairs)
    content = {
        "version": VERSION,
        "data": check.file.name,
        "sha256": sha256,
        "rows": journal.num_rows,
        "pictures": doubles.num_pictures,
        "root": str(check.root),
        "linked_folders": [str(folder) for folder in check.linked_folders],
        "unique_ids": check.unique_ids,
        "split": check.split,
        "sources": summary.source_table(counts, faults.faulty, check.split),
        "faults_left": faults.left,
        "faults": faults.kinds,
        "notes": notes.kinds,
        "repairs": {status: statuses[status] for status in ("possible", "done", "refused")},
        "lists": [FAULTS, NOTES, REPAIRS],
    }
    if check.drop:
        excluded = list(_exclusions(check.report / FAULTS))
        write_exclusions(check.drop, check.file, excluded, rows=journal.num_rows)
        log.info("%s: %d rows", check.drop, len(excluded))
    _write_lines(check.report / REPORT, [content], indent=1)
    return content


def _exclusions(faults: Path) -> Iterator[Exclusion]:
    """The rows of the list ``faults`` that have one that is not repaired, with all their faults."""
    with faults.open(encoding="utf-8") as lines:
        left = (line for line in map(json.loads, lines) if "row" in line)
        unrepaired = (line for line in left if not line.get("repaired", False))
        for (row, name), group in itertools.groupby(unrepaired, lambda x: (x["row"], x["id"])):
            reasons = [f"{line['kind']}: {line['message']}" for line in group]
            yield Exclusion(row, name, "; ".join(reasons))


def _write_lines(path: Path, lines: Iterable[Any], indent: int | None = None) -> None:
    """JSON, one line each; the file is there whole or not at all."""
    with written_aside(path) as partial, partial.open("w", encoding="utf-8") as opened:
        opened.writelines(f"{json.dumps(line, indent=indent)}\n" for line in lines)
