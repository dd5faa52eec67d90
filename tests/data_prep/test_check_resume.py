"""A check that is stopped or killed anywhere, and started again, ends as if it had not been."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import check
from data_prep.checking import findings, repair, scan
from data_prep.checking.journal import Journal
from tests.data_prep.checked import ROWS, files_of, run, write

CHUNKS = -(-ROWS // scan.CHUNK_ROWS)
inspect_chunk = findings.inspect_chunk  # before a test puts another in its place


def stop_after(patch: pytest.MonkeyPatch, owner: Any, name: str, times: int) -> list[None]:
    """Ctrl-C instead of the next call; the list has grown with each call before."""
    calls: list[None] = []
    function = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        if len(calls) == times:
            raise KeyboardInterrupt
        calls.append(None)
        return function(*args, **options)

    patch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("done", [0, 1, 7, 9])
def test_a_check_that_is_stopped_goes_on_and_ends_the_same(own_set, done):
    run(own_set, report="whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, Journal, "append", done)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, report="stopped")
    with pytest.MonkeyPatch.context() as patch:
        appended = stop_after(patch, Journal, "append", ROWS)
        run(own_set, report="stopped")
    assert len(appended) == CHUNKS - done
    assert files_of(own_set / "stopped") == files_of(own_set / "whole")


@pytest.mark.parametrize("written", range(4))
def test_a_check_that_is_stopped_while_it_writes_ends_the_same(own_set, written):
    run(own_set, report="whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, check, "_write_lines", written)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, report="stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "inspect_chunk", None)
        run(own_set, report="stopped")
    assert files_of(own_set / "stopped") == files_of(own_set / "whole")


def test_a_line_that_a_kill_has_torn_is_done_again(own_set):
    run(own_set, report="whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, Journal, "append", 5)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, report="stopped")
    (journal,) = (own_set / "stopped").glob("journal-*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])
    with pytest.MonkeyPatch.context() as patch:
        appended = stop_after(patch, Journal, "append", ROWS)
        run(own_set, report="stopped")
    assert len(appended) == CHUNKS - 4
    assert files_of(own_set / "stopped") == files_of(own_set / "whole")


@pytest.mark.parametrize(
    ("owner", "name", "times"),
    [(check, "carry_out", 0), (check, "carry_out", 4), (repair, "_write_jpeg", 1)]
    + [(repair, "_write_jpeg", n) for n in (2, 3)],
)
def test_repairs_that_are_stopped_end_the_same(own_set, planted_set, owner, name, times):
    run(own_set, "--repair", report="whole")
    repaired = files_of(own_set / "pictures")
    shutil.rmtree(own_set / "pictures")
    shutil.copytree(planted_set[0] / "pictures", own_set / "pictures", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, owner, name, times)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, "--repair", report="stopped")
    run(own_set, "--repair", report="stopped")
    assert files_of(own_set / "pictures") == repaired
    assert files_of(own_set / "stopped") == files_of(own_set / "whole")


def test_another_file_or_folder_does_not_go_on_with_what_was_found(own_set):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, Journal, "append", 5)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, report="stopped")
    rows = json.loads((own_set / "mix.json").read_text())
    write(own_set, rows[:200])
    assert run(own_set, report="stopped")["rows"] == 200


def slowly(*args: Any) -> Any:
    time.sleep(0.2)
    return inspect_chunk(*args)


def dies(*args: Any) -> Any:
    os._exit(9)


@pytest.mark.slow
def test_a_killed_check_takes_its_workers_along_and_goes_on(own_set, monkeypatch):
    run(own_set, report="whole")
    monkeypatch.setattr(scan, "inspect_chunk", slowly)
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(own_set,), kwargs={"report": "killed"}
    )
    process.start()
    wait_until(lambda: sum(p.read_bytes().count(b"\n") for p in journals(own_set / "killed")) > 2)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    monkeypatch.undo()
    assert journals(own_set / "killed")
    run(own_set, report="killed")
    assert files_of(own_set / "killed") == files_of(own_set / "whole")


def test_a_worker_that_dies_is_reported_with_its_rows(own_set, monkeypatch):
    monkeypatch.setattr(scan, "inspect_chunk", dies)
    with pytest.raises(ValueError, match=r"while the rows from 0 on were checked .* --workers"):
        run(own_set)


def test_two_checks_do_not_write_to_one_journal(own_set):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, Journal, "append", 5)
        with pytest.raises(KeyboardInterrupt):
            run(own_set, report="stopped")
    (path,) = journals(own_set / "stopped")
    with Journal(path), pytest.raises(ValueError, match="in use: another check"):
        run(own_set, report="stopped")


def journals(report: Path) -> list[Path]:
    return list(report.glob("journal-*.jsonl"))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
