"""Download the data sets of the three stages and the benchmarks.

python -m data_prep fetch SET --root DIR [--only SOURCE ...] [--dry_run]
python -m data_prep fetch --list

A source that is there whole is not fetched again; one that is damaged or half done is made whole.
Ends with 0 where all that was asked for is there, with 1 where something is not, 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep import hub as hubs
from data_prep.download import PARTS, PATIENCE, Patience
from data_prep.eval_sources import EVAL_HUB, EVAL_LLAVA
from data_prep.install import Job
from data_prep.sources import (
    ALLAVA_LAION,
    ALLAVA_VFLAN,
    LLAVA_MIX665K,
    LLAVA_PRETRAIN,
    DataSet,
    Hub,
    Source,
)
from data_prep.transfer import DownloadError

log = logging.getLogger(__name__)

SETS: Mapping[str, DataSet] = {
    "llava_pretrain": LLAVA_PRETRAIN,
    "allava_laion": ALLAVA_LAION,
    "allava_vflan": ALLAVA_VFLAN,
    "llava_mix665k": LLAVA_MIX665K,
    "eval_hub": EVAL_HUB,
    "eval_llava": EVAL_LLAVA,
}


def main(
    argv: Sequence[str],
    sets: Mapping[str, DataSet] = SETS,
    patience: Patience = PATIENCE,
) -> None:
    parser = _parser(sets)
    args = parser.parse_args(argv)
    if args.list:
        print(_sets(sets))
        return
    if args.set is None or args.root is None:
        parser.error("a SET and --root DIR are needed; --list shows the sets")
    by_name = {source.name: source for source in sets[args.set].sources}
    unknown = [name for name in args.only if name not in by_name]
    if unknown:
        parser.error(f"{args.set} has no source {', '.join(unknown)}; it has {', '.join(by_name)}")
    root = args.root.expanduser().resolve()
    chosen = [by_name[name] for name in dict.fromkeys(args.only)] or list(by_name.values())
    jobs = [
        Job(source, f"{args.set}.{source.name}", root, args.parts, patience) for source in chosen
    ]
    if args.dry_run:
        print(_plan(args.set, root, jobs, args.keep_archives))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        failed = fetch(jobs, root, args.keep_archives)
    except KeyboardInterrupt:
        log.error("stopped; the same command goes on from here")
        sys.exit(130)
    if failed:
        log.error("not there: %s", ", ".join(failed))
        sys.exit(1)


def fetch(jobs: Sequence[Job], root: Path, keep_archives: bool) -> list[str]:
    """Do what is not done of ``jobs``; the names of those that failed, each said on the log."""
    due = []
    for job in jobs:
        state = job.state()
        log.info("%s: %s", job.source.name, state)
        if not state.there:
            due.append(job)
    try:
        _check_disk(due, root, keep_archives)
    except ValueError as error:
        log.error("%s", error)
        return [job.source.name for job in due]
    failed = []
    for job in due:
        try:
            receipt = job.run(keep_archives)
            log.info("%s: %d files in %s", job.source.name, receipt.num_files, job.target)
        except (ValueError, OSError) as error:
            log.error("%s: %s", job.source.name, error)
            failed.append(job.source.name)
    return failed


def _parser(sets: Mapping[str, DataSet]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("set", nargs="?", choices=sets, metavar="SET", help="one of " + ", ".join(sets))
    add("--root", type=Path, help="the folder to fill; what the rows' image names are relative to")
    add("--only", nargs="+", default=[], metavar="SOURCE", help="these sources of the set")
    add("--dry_run", action="store_true", help="show from where, to where, sizes, licences; no net")
    add("--keep_archives", action="store_true", help="leave the archives in ROOT/.fetch")
    add("--parts", type=int, default=PARTS, help="connections for one file (%(default)s)")
    add("--list", action="store_true", help="show the sets and their sources")
    return parser


def _sets(sets: Mapping[str, DataSet]) -> str:
    lines = []
    for name, data_set in sets.items():
        lines += [f"{name}: {data_set.what}; recipes look in {data_set.root}"]
        lines += [f"    {source.name:22} {_sizes(source)}" for source in data_set.sources]
    return "\n".join(lines)


def _plan(name: str, root: Path, jobs: Sequence[Job], keep_archives: bool) -> str:
    lines = [f"{name} to {root} (sizes are approximate)"]
    due = []
    for job in jobs:
        state, source = job.state(), job.source
        lines += [
            f"{source.name}: {state}",
            f"    from     {job.origin}",
            f"    to       {job.target}",
            f"    size     {_sizes(source)}",
            f"    licence  {source.licence}",
        ]
        if source.note:
            lines.append(f"    note     {source.note}")
        if not state.there:
            due.append(job)
    known = [job for job in due if job.source.on_disk() is not None]
    need, free = _need(known, keep_archives), shutil.disk_usage(_there(root)).free
    unknown = f", and {len(due) - len(known)} of unknown size" if len(due) > len(known) else ""
    lines.append(
        f"{len(jobs) - len(due)} of {len(jobs)} there; the others need {_size(need)} of disk"
        f"{unknown}; {_size(free)} are free"
    )
    return "\n".join(lines)


def _sizes(source: Source) -> str:
    if source.on_disk() is None:
        return "unknown until the hub is asked, which is before the start"
    return f"{_size(source.download)} to download, {_size(source.on_disk())} on disk"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"


def _there(root: Path) -> Path:
    """The nearest folder above ``root`` that exists."""
    return next(path for path in (root, *root.parents) if path.exists())


def _need(jobs: Sequence[Job], keep_archives: bool) -> int:
    """Bytes that ``jobs``, whose sizes are known, will add to the disk while they run.

    An archive lies there beside what it holds until that is in place, then it goes.
    """
    archives = [job.source.download or 0 for job in jobs if job.source.unpack]
    peak = sum(archives) if keep_archives else max(archives, default=0)
    installed = sum(job.source.on_disk() or 0 for job in jobs)
    return max(0, installed + peak - sum(job.held() for job in jobs))


def _check_disk(due: Sequence[Job], root: Path, keep_archives: bool) -> None:
    """Refuse to begin what the disk cannot hold; asks the hub for sizes that are not known."""
    sized = [job.sized(_ask_size(job.source)) for job in due]
    need, free = _need(sized, keep_archives), shutil.disk_usage(_there(root)).free
    if need > free:
        raise ValueError(
            f"{root}: {_size(need)} are needed and {_size(free)} are free; free "
            f"{_size(need - free)}, name another --root, or fetch a part with --only"
        )


def _ask_size(source: Source) -> int | None:
    """Bytes of the download, from the hub if the table does not say; None if it does not answer."""
    if source.on_disk() is None and isinstance(source.get, Hub):
        with contextlib.suppress(DownloadError):  # the job will meet it again, and say so
            return hubs.total(hubs.listing(source.get)[1])
    return source.download
