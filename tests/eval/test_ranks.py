"""Runs that are killed, and runs of several processes; kill -9 leaves no time to tidy up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.batches import Sized, in_groups
from eval.plan import plan
from eval.ranks import Rank, wait_for_others
from eval.task import load_task

REPOSITORY = Path(__file__).parents[2]
SLOW_RUN = Path(__file__).with_name("slow_run.py")
TASKS = "stamps_yesno,stamps_choice,stamps_short"
REPLIES = 48


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def start(checkpoint, data_root):
    """``start(out, ranks, seconds)``: a process for each rank, killed when the test is over."""
    started = []

    def start(out, ranks=1, seconds=0.0, *more):
        words = ["run", "--checkpoint", checkpoint, "--data_root", data_root, "--tasks", TASKS]
        words += ["--out", out, "--batch_size", "2", *more]
        command = [sys.executable, SLOW_RUN, str(seconds), *map(str, words)]
        here = [
            subprocess.Popen(command, env=environment(rank, ranks), stdout=subprocess.DEVNULL)
            for rank in range(ranks)
        ]
        started.extend(here)
        return here

    yield start
    for process in started:
        process.kill()
        process.wait()


def environment(rank, ranks):
    path = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    more = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    return os.environ | more | {"PYTHONPATH": path}


def num_replies(out):
    return sum(file.read_bytes().count(b"\n") for file in out.glob("predictions/*/*.jsonl"))


def kill_at(processes, out, replies):
    """kill -9 all of them as soon as so many replies are stored, and before all are."""
    until = time.monotonic() + 60
    while num_replies(out) < replies:
        assert time.monotonic() < until
        assert any(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.kill()
        process.wait()
    assert replies <= num_replies(out) < REPLIES


def end(processes):
    return [process.wait(timeout=60) for process in processes]


def written(out):
    files = [out / "results.json", *sorted((out / "samples").iterdir())]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize(("first", "second", "last"), [(1, 1, 1), (2, 2, 2), (2, 2, 1), (1, 1, 3)])
def test_a_run_killed_twice_ends_with_the_bytes_of_an_undisturbed_one(
    start, tmp_path, first, second, last
):
    assert end(start(tmp_path / "whole")) == [0]
    out = tmp_path / "run"
    kill_at(start(out, first, 0.02), out, 8)
    assert not (out / "results.json").exists()
    kill_at(start(out, second, 0.02), out, num_replies(out) + 8)
    assert json.loads((out / "run.json").read_text())["status"] == "started"
    assert end(start(out, last)) == [0] * last
    assert written(out) == written(tmp_path / "whole")
    assert num_replies(out) == REPLIES  # none was asked twice
    assert json.loads((out / "run.json").read_text())["status"] == "success"


def test_a_rank_that_dies_leaves_the_run_incomplete_until_it_is_started_again(start, tmp_path):
    out = tmp_path / "run"
    processes = start(out, 2, 0.02, "--patience", "1")
    until = time.monotonic() + 60
    while not list(out.glob("predictions/*/rank-1-*.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.005)
    processes[1].kill()
    assert end(processes) == [1, -9]
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["missing"]) == ("incomplete", REPLIES - num_replies(out))
    assert REPLIES / 2 <= num_replies(out) < REPLIES
    results = json.loads((out / "results.json").read_text())
    assert not all(task["complete"] for task in results["tasks"].values())
    assert end(start(out, 2)) == [0, 0]
    end(start(tmp_path / "whole"))
    assert written(out) == written(tmp_path / "whole")


def test_the_script_shares_the_questions_of_a_real_checkpoint_by_torchrun(
    checkpoints, data_root, tmp_path
):
    words = ["--checkpoint", checkpoints["moe"], "--data_root", data_root]
    words += ["--tasks", "stamps_short", "--batch_size", "3"]
    for name, processes in (("one", "1"), ("two", "2")):
        command = ["bash", REPOSITORY / "scripts/evaluate.sh", *words, "--out", name]
        more = {"NUM_PROCESSES": processes, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | more, timeout=120)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    files = (tmp_path / "two/predictions/stamps_short").iterdir()
    assert sorted(file.name[:7] for file in files if file.stat().st_size) == ["rank-0-", "rank-1-"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_disjoint_and_whole_and_keep_a_picture_together(data_root, ranks):
    requests = plan(load_task("stamps_yesno", data_root), "f", shuffled_control=True)
    sized = [Sized(request, len(request.sample.prompt)) for request in requests]
    shares = [Rank(r, ranks).share(in_groups(sized[::-1])) for r in range(ranks)]
    dealt = [s.request.key for share in shares for group in share for s in group]
    assert sorted(dealt) == sorted(request.key for request in requests)
    pictures = [{s.request.sample.images for group in share for s in group} for share in shares]
    assert sum(map(len, pictures)) == len(set().union(*pictures))
    assert in_groups(sized) == in_groups(sized[::-1])


def test_a_slow_rank_is_waited_for_while_replies_come(monkeypatch):
    monkeypatch.setattr("eval.ranks.POLL", 0.01)
    counts = iter([3] * 5 + [2] * 5 + [1] * 5 + [0])
    assert wait_for_others(lambda: next(counts), patience=0.09) == 0
    assert wait_for_others(lambda: 4, patience=0.05) == 4


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 in the environment must be below WORLD_SIZE=2"),
        ({"RANK": "x"}, "RANK='x' in the environment must be a whole number"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Rank.of_environment()
