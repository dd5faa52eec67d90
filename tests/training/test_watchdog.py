"""A process in which nothing moves ends by itself and says where it stands."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_compete.training.args import TrainArgs
from llava_compete.training.output import HANG
from llava_compete.training.watchdog import HUNG, REPORT, Watchdog

fork = multiprocessing.get_context("fork")  # quicker than a process that imports
TIMEOUT = 0.6  # seconds


def wait_for_what_does_not_come() -> None:
    time.sleep(60)


def be_watched(folder: Path, rank: int, world: int, beats: int, stderr: Path) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    args = SimpleNamespace(output_dir=str(folder), process_index=rank, world_size=world)
    trainer = SimpleNamespace(args=args, add_callback=lambda callback: None)
    state = SimpleNamespace(global_step=6)
    with Watchdog(trainer, TIMEOUT) as watchdog:
        for _ in range(beats):
            watchdog.on_step_begin(args, state)
            time.sleep(TIMEOUT / 4)
        if beats < 9:
            wait_for_what_does_not_come()
    time.sleep(2 * TIMEOUT)


def watched(folder: Path, **values: Any) -> tuple[int | None, str]:
    """Exit code and what the process said on stderr."""
    stderr = folder.parent.with_name("stderr")
    process = fork.Process(target=be_watched, args=(folder,), kwargs={**values, "stderr": stderr})
    process.start()
    process.join(60)
    return process.exitcode, stderr.read_text()


def test_a_step_that_does_not_end_is_reported_with_its_stack(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / REPORT.format(0)).write_text("every rank but this one has reported")
    code, said = watched(output, rank=1, world=3, beats=1)
    assert code == HUNG == 76, said
    for text in ((output / REPORT.format(1)).read_text(), said):
        assert "rank 1 of 3 on " in text
        assert f"step 7 began, then nothing for step_timeout={TIMEOUT} s" in text
        assert "wait_for_what_does_not_come" in text
        assert "no report of ranks [2]" in text


def test_a_run_that_moves_is_left_alone_and_so_is_what_follows_it(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    code, said = watched(output, rank=0, world=1, beats=9)
    assert code == 0, said
    assert not list(output.iterdir())


def test_time_in_which_the_process_is_suspended_does_not_count(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    values = {"rank": 0, "world": 1, "beats": 9, "stderr": tmp_path / "stderr"}
    process = fork.Process(target=be_watched, args=(output,), kwargs=values)
    process.start()
    time.sleep(TIMEOUT / 2)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2 * TIMEOUT)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0


def test_a_run_whose_folder_takes_no_report_ends_by_the_same_code(tmp_path: Path) -> None:
    code, said = watched(tmp_path / "not" / "there", rank=0, world=1, beats=1)
    assert code == HUNG, said
    assert f"step 7 began, then nothing for step_timeout={TIMEOUT} s" in said


def test_the_report_is_a_file_of_the_run() -> None:
    assert HANG.fullmatch(REPORT.format(12))


@pytest.mark.parametrize("values", [{"step_timeout": -1}, {"step_timeout": 1800.0}])
def test_a_time_that_the_watchdog_cannot_keep_is_refused(
    tmp_path: Path, values: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=r"must be 0 \(never\) or less than ddp_timeout=1800"):
        TrainArgs(output_dir=str(tmp_path), use_cpu=True, **values)


def test_transformers_own_saving_on_a_signal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="enable_jit_checkpoint=true"):
        TrainArgs(output_dir=str(tmp_path), use_cpu=True, enable_jit_checkpoint=True)
