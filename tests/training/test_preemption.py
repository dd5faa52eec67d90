"""Signals: what a listening trainer does with them, and how its exit code reaches the caller."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava_compete.training import preemption as module
from llava_compete.training.loader import _start_worker
from llava_compete.training.preemption import PREEMPTED, SIGNALS, Preemption

fork = multiprocessing.get_context("fork")  # quicker than a process that imports


def step_end(preemption: Preemption) -> TrainerControl:
    control = TrainerControl()
    preemption.on_step_end(preemption.args, TrainerState(), control)
    return control


@pytest.fixture
def preemption(tmp_path: Path) -> Preemption:
    return Preemption(TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_stops_at_the_next_end_of_a_step(
    preemption: Preemption, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with preemption:
        before = step_end(preemption)
        assert not before.should_save
        assert not before.should_training_stop
        os.kill(os.getpid(), number)
        after = step_end(preemption)
    assert after.should_save
    assert after.should_training_stop
    with pytest.raises(SystemExit) as exited:
        preemption.leave()
    assert exited.value.code == PREEMPTED == 75
    assert number.name in capfd.readouterr().err


def test_a_run_that_nobody_asked_goes_on_and_its_handlers_are_put_back(
    preemption: Preemption,
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with preemption:
        assert not step_end(preemption).should_training_stop
    preemption.leave()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_its_context_no_step_asks_for_anything(preemption: Preemption) -> None:
    with preemption:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert not step_end(preemption).should_training_stop


def test_an_epoch_cut_short_is_neither_saved_again_nor_logged(preemption: Preemption) -> None:
    control = TrainerControl(should_save=True, should_log=True)
    preemption.on_epoch_end(preemption.args, TrainerState(), control)
    assert control.should_save
    preemption.agreed = True
    preemption.on_epoch_end(preemption.args, TrainerState(), control)
    assert not control.should_save
    assert not control.should_log


def be_signalled(preemption: Preemption, file: Path) -> None:
    with preemption, file.open("w", buffering=1) as said:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        said.write("echo\n")
        module.ECHO_SECONDS = 0.0
        os.kill(os.getpid(), signal.SIGTERM)
        said.write("alive\n")


def test_an_echo_changes_nothing_and_a_second_signal_ends_the_process(
    preemption: Preemption, tmp_path: Path
) -> None:
    file = tmp_path / "said"
    process = fork.Process(target=be_signalled, args=(preemption, file))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    assert file.read_text() == "echo\n"


def work(file: Path) -> None:
    _start_worker(0, 1, 0)
    file.touch()
    time.sleep(60)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_loaders_worker_heeds_its_rank_alone(number: signal.Signals, tmp_path: Path) -> None:
    worker = fork.Process(target=work, args=(tmp_path / "up",))
    worker.start()
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    for _ in range(2):  # a scheduler's
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    os.kill(worker.pid, number)
    worker.join(30)
    assert worker.exitcode == 0


def test_signals_that_a_scheduler_sends_are_listened_to() -> None:
    assert set(module.SIGNALS) == {signal.SIGTERM, signal.SIGUSR1}
