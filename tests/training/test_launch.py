"""Through a launcher signals reach the ranks, and their exit code the caller."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_compete.training import launch as module
from llava_compete.training.preemption import PREEMPTED
from tests import tiny
from tests.training.launches import REPOSITORY, free_port
from tests.training.recipes import argv, make_recipe

LAUNCH = [sys.executable, "-P", module.__file__]
# A launcher of two ranks with a worker each, which ends with 1 as torchrun does. Each rank and each
# worker writes the signals it gets into its own file.
LAUNCHER = """
import os, subprocess, sys
program = '''
import os, signal, subprocess, sys, time
folder, role = sys.argv[1:]
def take(number, _):
    open(f"{folder}/{role}-{os.environ['RANK']}", "a").write(f"{number} ")
    if role == "rank":
        worker.kill()
        open(os.environ["LLAVA_COMPETE_EXIT_FILE"], "w").write("75")
        sys.exit(75)
signal.signal(signal.SIGTERM, take)
signal.signal(signal.SIGUSR1, take)
if role == "rank":
    worker = subprocess.Popen([sys.executable, "-c", sys.orig_argv[2], folder, "worker"])
open(f"{folder}/{role}-{os.environ['RANK']}", "w").close()
time.sleep(200)
'''
words = [sys.executable, "-c", program, sys.argv[1], "rank"]
ranks = [subprocess.Popen(words, env={**os.environ, "RANK": str(rank)}) for rank in range(2)]
sys.exit(max(rank.wait() for rank in ranks) > 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_ranks_alone_and_their_code_comes_back(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [*LAUNCH, sys.executable, "-c", LAUNCHER, str(tmp_path)]
    process = subprocess.Popen(command)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 4, process)
    process.send_signal(number)
    assert process.wait(120) == PREEMPTED
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    got = f"{int(number)} "
    assert said == {"rank-0": got, "rank-1": got, "worker-0": "", "worker-1": ""}


@pytest.mark.parametrize(
    ("words", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)],
)
def test_without_a_report_the_code_is_the_launchers(words: str, code: int) -> None:
    assert subprocess.run([*LAUNCH, "bash", "-c", words], check=False).returncode == code


def test_a_launcher_without_ranks_is_ended_itself() -> None:
    process = subprocess.Popen([*LAUNCH, "bash", "-c", "echo up; sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM


def wait_for(met, process: subprocess.Popen, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, f"ended by {process.returncode}"
        assert time.monotonic() < until, "does not come"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "python"])
def test_a_signal_to_train_sh_saves_and_ends_by_the_code(launcher: str, tmp_path: Path) -> None:
    """Each launcher has a ZeRO stage of its own; then the run is finished without a launcher."""
    checkpoint = tiny.make_checkpoint(tmp_path / "moe")
    recipe = make_recipe(
        tmp_path,
        checkpoint,
        n=4,
        per_device_train_batch_size=1,
        max_steps=100000,
        logging_steps=100000,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
    )
    (file,), output = argv(recipe), tmp_path / "run"
    zero = {"torchrun": [], "deepspeed": ["--deepspeed", "zero_configs/zero2.json"], "python": []}
    environment = {
        **os.environ,
        "LAUNCHER": launcher,
        "NUM_PROCESSES": "2",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    command = ["bash", "scripts/train.sh", file, *zero[launcher]]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: (output / "checkpoint-2").exists(), process)
    process.terminate()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == PREEMPTED, said.decode()[-3000:]
    newest = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    assert 2 <= state["global_step"] < 100000
    assert not (output / "model.safetensors").exists(), "a preempted run is not a finished one"
