"""What a step of the MoE layer holds from its forward to its backward, and its peak."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.memory import account, peak_of_process
from benchmarks.moe_cases import CANDIDATES, Case, cases, source
from benchmarks.steps import Step

ROOT = Path(__file__).parents[1]
MIB = 2**20


def held_and_peaks(case: Case, device: torch.device) -> dict[str, dict[str, float | None]]:
    """MiB by candidate, above weights and tokens.

    ``held``: what lives between forward and backward, the output not counted. ``most``: at once,
    gradients of the weights with it. ``peak``: the larger of the forward's most and of ``most``
    without those gradients; where they come one after the other (the loops) it is that or more.
    ``process``: ``most`` by the system's account, on CPU, in a process of its own, of the cases
    with the default number of gated experts.
    """
    checked = device.type == "cpu" and case.gated and case.experts == Case.experts
    given = source(case, device)
    found = {}
    for name, candidate in CANDIDATES.items():
        if not candidate.stands(case):
            continue
        step = Step(candidate.build(given, case), case, device)
        figures = _of_allocator(step, device)
        figures["process"] = _of_process(name, case) if checked else None
        found[name] = figures
    return found


def _of_allocator(step: Step, device: torch.device) -> dict[str, float | None]:
    step()  # what is made once
    forward = account(step.forward, device)
    output = forward.result.y_TD.untyped_storage().nbytes()
    step.backward(forward.result)  # a graph kept alive would be freed in the next account
    step.clear()
    most = account(lambda: _both(step), device).most
    gradients = sum(p.grad.nbytes for p in step.layer.parameters() if p.grad is not None)
    step.clear()
    return {
        "held": (forward.left - output) / MIB,
        "peak": max(forward.most, most - gradients) / MIB,
        "most": most / MIB,
    }


def _both(step: Step) -> None:
    step.backward(step.forward())


def _of_process(candidate: str, case: Case) -> float:
    # Blocks of 64 KiB and more go back to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    threads = ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "moe", *threads, "--child", candidate, case.name],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("PEAK "))
    return int(line[5:]) / MIB


def child(candidate: str, name: str) -> int:
    """Bytes by which this process grows in a step of the candidate; the case by its name."""
    both = [*cases(quick=True), *cases(quick=False)]
    case = next(case for case in both if case.name == name)
    device = torch.device("cpu")
    step = Step(CANDIDATES[candidate].build(source(case, device), case), case, device)
    step()
    return peak_of_process(lambda: _both(step))
