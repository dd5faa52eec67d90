"""Every metric of runs as rows of one long table, for spreadsheets and wandb."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.plan import RIGHT
from eval.store import Record, read_results, read_run

Cell = str | int | float | bool | None

COLUMNS = (
    *("run", "checkpoint", "fingerprint", "dtype", "profile", "changes"),
    *("task", "version", "status", "n", "expected_n", "missing", "limit"),
    *("condition", "metric", "headline", "group", "value", "stderr", "unit", "chance"),
    *("metric_n", "metric_flags", "flags"),
)


class Evaluated(NamedTuple):
    """A run directory with its record and its metrics."""

    path: Path
    run: Record
    results: Record


def read(directory: Path) -> Evaluated:
    """ValueError where the directory is no run or has no results, or those name no profile."""
    run, results = read_run(directory), read_results(directory)
    if "profile" not in results:
        raise ValueError(
            f"{directory / 'results.json'} names no profile: the command that made the run, given "
            f"again, writes it and keeps the replies"
        )
    return Evaluated(directory, run, results)


def status(task: Record, limit: int | None) -> str:
    """What a task's numbers are of: every sample, a few by --limit, or what there is so far."""
    if "unscored" in task:
        return "UNSCORED"
    if limit is not None:
        return f"LIMITED to {limit}"
    return "complete" if task["complete"] else "INCOMPLETE"


def counts(flags: Mapping[str, int]) -> str:
    """``unparsed 3, truncated 1``; empty where there are none."""
    return ", ".join(f"{flag} {count}" for flag, count in sorted(flags.items()))


def rows(evaluated: Evaluated) -> Iterator[dict[str, Cell]]:
    """A row by ``COLUMNS`` for each number; a task without any has one row that has no value."""
    arguments, results = evaluated.run["arguments"], evaluated.results
    base: dict[str, Cell] = dict.fromkeys(COLUMNS) | {
        "run": str(evaluated.path),
        "checkpoint": arguments["checkpoint"],
        "fingerprint": results["fingerprint"],
        "dtype": arguments["dtype"],
        "profile": results["profile"],
        "changes": json.dumps(results["changes"], sort_keys=True) if "changes" in results else "",
        "limit": results["limit"],
    }
    for name, task in results["tasks"].items():
        about = base | {
            "task": name,
            "status": status(task, results["limit"]),
            **{key: task[key] for key in ("version", "n", "expected_n", "missing")},
        }
        found = list(_of_task(task))
        for row in found or [{"condition": RIGHT, "metric": task["headline"], "headline": True}]:
            yield about | row


def write_csv(runs: Sequence[Evaluated], path: Path) -> None:
    """All rows of all runs below one line of names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for evaluated in runs:
            writer.writerows(rows(evaluated))


def _of_task(task: Record) -> Iterator[dict[str, Cell]]:
    for condition, part in task["conditions"].items():
        for metric, value in part["metrics"].items():
            about: dict[str, Cell] = {
                "condition": condition,
                "metric": metric,
                "headline": metric == task["headline"],
                "flags": counts(part["flags"]),
            }
            yield about | {"group": ""} | _numbers(value)
            for group, share in value["groups"].items():
                yield about | {"group": group, "flags": None} | _numbers(share)


def _numbers(value: Record) -> dict[str, Cell]:
    kept: dict[str, Cell] = {key: value[key] for key in ("value", "stderr", "unit", "chance")}
    return kept | {"metric_n": value["n"], "metric_flags": ", ".join(value["flags"])}
