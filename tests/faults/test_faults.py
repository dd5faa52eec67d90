"""The fault suite in its bounded form, in a process of its own: its ranks are forks of it.

`python -m tests.faults` is the long form.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.faults.compare import differences
from tests.faults.runs import REPOSITORY, STEPS


@pytest.mark.slow
def test_no_fault_loses_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "; 0 cells with a lost run" in done.stdout


def write_run(folder: Path, *, loss: float = 1.5, weight: float = 1.0, moment: float = 0.5) -> Path:
    """What ``differences`` reads of a run."""
    last = folder / f"checkpoint-{STEPS}"
    last.mkdir(parents=True)
    lines = [{"loss": loss, "step": 1, "step_seconds": torch.rand(()).item()}, {"train_loss": 1.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    weights = {"weight": torch.full((4,), weight)}
    save_file(weights, folder / "model.safetensors")
    save_file(weights, last / "model.safetensors")
    torch.save({"state": [{"exp_avg": torch.full((4,), moment)}]}, last / "optimizer.pt")
    return folder


def test_equal_runs_have_no_difference(tmp_path: Path) -> None:
    assert differences(write_run(tmp_path / "a"), write_run(tmp_path / "b")) == []


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"loss": 1.5000001}, "log/0/loss"),
        ({"weight": 1.0000001}, "weights/weight"),
        ({"moment": 0.50000006}, f"checkpoint-{STEPS}/optimizer.pt/state/0/exp_avg"),
    ],
)
def test_a_last_bit_is_a_difference(tmp_path: Path, changed: dict[str, float], place: str) -> None:
    found = differences(write_run(tmp_path / "a"), write_run(tmp_path / "b", **changed))
    assert any(line.startswith(place) for line in found), found
