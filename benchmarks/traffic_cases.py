"""Trainings of a small model with experts in two processes, and the bytes of their steps."""

import json
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cost import Sizes, collectives, sent
from benchmarks.plan import ROOT, make

RANKS, STEPS = 2, 4  # router steps, then as many in which all layers compete
# A model too large to keep what it gathers: DeepSpeed's limits are 10^9 parameters else.
RELEASED = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
OWNERS = {"use_multi_rank_bucket_allreduce": False}
# Stage, changes of DeepSpeed's configuration, changes of the recipe.
Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "ZeRO-1": ("zero1", {}, {}),
    "ZeRO-2": ("zero2", {}, {}),
    "ZeRO-2, gradients to their owners": ("zero2", OWNERS, {}),
    "ZeRO-2, bfloat16": ("zero2", {}, {"bf16": True}),
    "ZeRO-3": ("zero3", RELEASED, {}),
    "ZeRO-3, bfloat16": ("zero3", RELEASED, {"bf16": True}),
    "ZeRO-3, checkpointing": ("zero3", RELEASED, {"activation_checkpointing": True}),
}


def measure(folder: Path, names: Collection[str] = tuple(CASES)) -> dict[str, dict[str, Any]]:
    """What benchmarks.traffic finds of the cases. CalledProcessError where a training fails."""
    base = yaml.safe_load(make(folder)["ZeRO-3"].read_text())
    base |= {"max_steps": STEPS, "competition_warmup": STEPS // 2, "per_device_train_batch_size": 1}
    recipes = []
    for number, name in enumerate(names):
        stage, zero, keys = CASES[name]
        config = json.loads((ROOT / "zero_configs" / f"{stage}.json").read_text())
        config["zero_optimization"] |= zero
        file = folder / f"{number}.deepspeed.json"
        file.write_text(json.dumps(config))
        recipe = folder / f"{number}.yaml"
        recipe.write_text(yaml.safe_dump({**base, **keys, "deepspeed": str(file)}))
        recipes.append(str(recipe))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    words = ["--master-port", str(port), "-m", "benchmarks.traffic", str(folder), *recipes]
    with (folder / "log").open("w") as log:
        subprocess.run([*launcher, *words], cwd=ROOT, check=True, stdout=log, stderr=log)
    return {
        name: json.loads((folder / f"{number}.json").read_text())
        for number, name in enumerate(names)
    }


def beside_model(name: str, found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Rows: case, step, bytes of its kinds in those of the trained, sent, sent by the model."""
    stage, zero, keys = CASES[name]
    of = Sizes(parameters=found["parameters"], trained=found["trained"], experts=found["experts"])
    rows: list[tuple[Any, ...]] = []
    for kind, step in {"router": STEPS // 2 - 1, "competition": STEPS - 1}.items():
        modelled = collectives(
            stage,
            of,
            found["item"],
            checkpointing="activation_checkpointing" in keys,
            competing=float(kind == "competition"),
            owners=zero == OWNERS,
        )
        counted = found["steps"][step]
        trained = found["trained"] * found["item"]
        shares = [counted.get(each, 0) / trained for each in KINDS]
        both = sent(counted, found["ranks"]), sent(modelled, found["ranks"])
        rows.append((name, kind, *shares, both[0] / 2**20, both[1] / 2**20, both[0] / both[1]))
    return rows


KINDS = ("all-reduce", "reduce", "reduce-scatter", "all-gather")
HEADS = ("", "step", *KINDS, "MiB sent", "modelled", "sent / modelled")
