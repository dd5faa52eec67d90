"""The files of a run directory.

run.json                    who asked what of which model, when, and how it ended
fingerprint.json            hashes of the checkpoint's files, kept to save time
predictions/TASK/*.jsonl    one line a reply, appended as they come
samples/TASK.jsonl          every sample with its answer and its scores
results.json                the metrics: no paths, no times, so equal runs have equal bytes
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from eval.inference import describe

Record = dict[str, Any]

PACKAGES = ("torch", "transformers", "open_clip_torch", "pillow")


def write_json(path: Path, value: Any) -> None:
    """Write all of the file or none of it, keys sorted."""
    _write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_jsonl(path: Path, rows: Iterable[Record]) -> None:
    """Write all of the file or none of it, one row a line, keys sorted."""
    _write(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def read_run(run_dir: Path) -> Record:
    """The run's record, ``run.json``."""
    return _read_json(run_dir / "run.json")


def read_results(run_dir: Path) -> Record:
    """The run's metrics, ``results.json``."""
    return _read_json(run_dir / "results.json")


def read_predictions(run_dir: Path, task: str) -> dict[str, Record]:
    """Every reply of a task by its key; two that share a key must agree.

    A last line without its newline was cut off by a crash and is passed over.
    """
    records: dict[str, Record] = {}
    for path in sorted((run_dir / "predictions" / task).glob("*.jsonl")):
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not a line of JSON ({error}); delete the line to ask again"
                ) from error
            if records.setdefault(record["key"], record) != record:
                raise ValueError(
                    f"{path}:{number}: another reply to {record['id']!r} of {task} is stored under "
                    f"the same key; delete one of them"
                )
    return records


@contextmanager
def appending(
    run_dir: Path, task: str, rank: int = 0
) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Gives a function that appends replies and returns once they are on the disk.

    The file is this process's own; one of the same number that was killed may have left it.
    """
    path = run_dir / "predictions" / task / f"rank-{rank}-{os.getpid()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut_torn_line(file)

        def append(records: Sequence[Record]) -> None:
            file.write("".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())

        yield append


def claim(run_dir: Path, fingerprint: str) -> None:
    """Refuse a run directory that holds another model's answers, or those of another routing."""
    if not (run_dir / "run.json").is_file():
        return
    held = read_run(run_dir)
    if held["fingerprint"] != fingerprint:
        arguments = held["arguments"]
        way = "; ".join(describe(arguments.get("changes", {}))) or "as it was saved"
        raise ValueError(
            f"{run_dir} holds the answers of another model: fingerprint "
            f"{held['fingerprint'][:12]} (was {arguments['checkpoint']} in {arguments['dtype']}, "
            f"{way}), this one is {fingerprint[:12]}. Give another --out"
        )


@contextmanager
def recorded(run_dir: Path, arguments: Record, fingerprint: str) -> Iterator[Record]:
    """Keep ``run.json`` about what happens inside: started, then what the caller says, or error.

    Gives the record, in whose ``tasks`` the caller notes what each took, in ``missing`` how many
    replies did not come, and in ``status`` success or incomplete. The metrics of an earlier run in
    the same directory are removed, so that what lies there belongs to this one.
    """
    start = time.perf_counter()
    record: Record = {
        "status": "started",
        "arguments": arguments,
        "fingerprint": fingerprint,
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
        "started": _now(),
        "tasks": {},
        "missing": 0,
    }
    write_json(run_dir / "run.json", record)
    (run_dir / "results.json").unlink(missing_ok=True)
    try:
        yield record
    finally:
        if (error := sys.exception()) is not None:
            said = "".join(traceback.format_exception_only(error)).strip()
            record |= {"status": "error", "error": said}
        seconds = round(time.perf_counter() - start, 3)
        write_json(run_dir / "run.json", record | {"ended": _now(), "seconds": seconds})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> Record:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}: is it a run directory, and did it end?")
    value: Record = json.loads(path.read_text(encoding="utf-8"))
    return value


def _cut_torn_line(file: IO[bytes]) -> None:
    # What is appended after half a line would be lost with it.
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
