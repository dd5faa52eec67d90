"""What it takes to start: help, imports, a training up to its first step.

Each command is a process of its own and they take turns. The time is that of the processor, all
threads and children of it, which a machine shared with others changes little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.first_step import PHASES
from benchmarks.measure import interleaved, machine, summary, table, write

ROOT = Path(__file__).parents[1]
BASELINE = "import torch"
# What a user knows, then what is ours. Words of Python's command line.
COMMANDS: dict[str, tuple[str, ...]] = {
    "an empty program": ("-c", "pass"),
    BASELINE: ("-c", "import torch"),
    "import torch, transformers, deepspeed": ("-c", "import torch, transformers, deepspeed"),
    "import llava_compete": ("-c", "import llava_compete"),
    "import its model": ("-c", "from llava_compete import LlavaCompeteForConditionalGeneration"),
    "llava-compete --help": ("-m", "llava_compete", "--help"),
    "llava-compete compose --help": ("-m", "llava_compete", "compose", "--help"),
    "llava-compete train --help": ("-m", "llava_compete", "train", "--help"),
    "eval --help": ("-m", "eval", "--help"),
    "eval run --help": ("-m", "eval", "run", "--help"),
    "data_prep --help": ("-m", "data_prep", "--help"),
    "data_prep check --help": ("-m", "data_prep", "check", "--help"),
    "experiments --help": ("-m", "experiments", "--help"),
    "benchmarks --help": ("-m", "benchmarks", "--help"),
}
TRAINING = "training, to its first step"


def processor_seconds(words: Sequence[str], output: Path | None = None) -> float:
    """Of a Python process with these words; its standard output goes to ``output``.

    CalledProcessError where it does not end by 0.
    """
    with (output or Path(os.devnull)).open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=out, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return usage.ru_utime + usage.ru_stime


def first_step(recipe: Path, phases: list[dict[str, float]]) -> float:
    """Processor seconds of a training up to its first step; ``phases`` gets what each took."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "phases"
        words = ("-m", "benchmarks.first_step", str(recipe), "--output_dir", f"{folder}/run")
        seconds = processor_seconds(words, output)
        phases.append(json.loads(output.read_text().splitlines()[-1]))
    return seconds


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, TRAINING], metavar="COMMAND")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of each process")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/startup.json"))
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    chosen = {BASELINE, *(args.only or (*COMMANDS, TRAINING))}
    candidates: dict[str, Callable[[], float]] = {
        name: partial(processor_seconds, words)
        for name, words in COMMANDS.items()
        if name in chosen
    }
    phases: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        if TRAINING in chosen:
            from benchmarks.plan import make

            recipe = make(Path(folder))["plain, all trained"]
            candidates[TRAINING] = partial(first_step, recipe, phases)
        found = interleaved(candidates, args.rounds)
    by_phase = {f"  {name}": [each[name] for each in phases[1:]] for name in PHASES if phases}
    seconds = found | by_phase
    least_known = summary(found[BASELINE])["median"]
    rows = []
    for name, values in seconds.items():
        of = summary(values)
        rows.append((name, *of.values(), of["median"] / least_known))
    print(table([("processor seconds", "median", "least", "most", f"/ {BASELINE}"), *rows]))
    write(args.json, {"machine": machine(), "rounds": args.rounds, "seconds": seconds})
