"""`llava-compete plan` beside the peaks of real trainings, by torch's memory accounting.

Each recipe runs some steps in a process of its own under torch's profiler, which has every
allocation and release of torch's CPU allocator. What oneDNN takes for itself is not among them.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import machine, table, write
from benchmarks.memory import allocations
from llava_compete import MoEConfig, save, upcycle_model
from llava_compete.checkpoint import compose
from tests import tiny

ROOT = Path(__file__).parents[1]
STEPS = 2
WIDTH = 256
# Of each recipe, what it says beside what all say.
RECIPES: dict[str, dict[str, Any]] = {
    "plain, all trained": {"trainable": ["vision", "projector", "language_model"]},
    "checkpointing, accumulation": {
        "trainable": ["projector", "language_model"],
        "activation_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8,
    },
    "ZeRO-1": {"trainable": ["projector", "language_model"], "deepspeed": "zero1"},
    "ZeRO-2": {"trainable": ["projector", "language_model"], "deepspeed": "zero2"},
    "ZeRO-3": {"trainable": ["projector", "language_model"], "deepspeed": "zero3"},
}


def make(folder: Path) -> dict[str, Path]:
    """A checkpoint with experts, rows of one length, and the recipes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny.make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    vision, weights = tiny.make_tower(folder / "tower")
    model, processor = compose(str(folder / "lm"), vision, str(weights))
    moe = {part: MoEConfig() for part in ("language_model", "projector")}
    upcycle_model(model, moe, perturbation=0.5)
    save(model, processor, folder / "moe")
    (folder / "images").mkdir()
    tiny.draw(1).save(folder / "images" / "1.png")
    turns = [("human", "<image>\n?"), ("gpt", "box " * 200)]
    said = [{"from": speaker, "value": value} for speaker, value in turns]
    rows = [{"id": str(i), "image": "1.png", "conversations": said} for i in range(64)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return {name: _recipe(folder, name, keys) for name, keys in RECIPES.items()}


def _recipe(folder: Path, name: str, keys: dict[str, Any]) -> Path:
    values = {
        "checkpoint": str(folder / "moe"),
        "data_path": str(folder / "rows.json"),
        "image_folder": str(folder / "images"),
        "output_dir": str(folder / f"run of {name}"),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "max_length": 420,
        "learning_rate": 1e-4,
        "competition_rate": 1.0,
        "competition_max_layers": 5,
        "competition_warmup": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **keys,
    }
    if "deepspeed" in keys:
        values["deepspeed"] = str(ROOT / "zero_configs" / f"{keys['deepspeed']}.json")
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def measured(recipe: Path) -> int:
    """Most bytes at once of a training by the recipe."""
    from llava_compete.training.prepare import prepare, run

    gc.collect()  # else what an earlier training held is released in this one's account
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer, _ = prepare([str(recipe)])
        for parameter in trainer.model.parameters():  # mapped from a file, by no allocator
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.clone()
        run(trainer, None)
    now = most = 0
    for size in allocations(profiler):
        now += size
        most = max(most, now)
    return most


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="empty directory to work in")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        print(f"PEAK {measured(args.child)}")
        return
    from llava_compete.plan import plan_of

    found: dict[str, dict[str, float]] = {}
    for name, recipe in make(args.folder).items():
        command = [sys.executable, "-m", "benchmarks", "plan", "--folder", str(args.folder)]
        done = subprocess.run(
            [*command, "--child", str(recipe)], check=True, cwd=ROOT, capture_output=True, text=True
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("PEAK "))
        planned = plan_of([str(recipe)], gpus=1)
        found[name] = {"measured": int(line[5:]) / 2**20, "planned": planned.own.total / 2**20}
    rows = [
        (name, each["measured"], each["planned"], each["planned"] / each["measured"])
        for name, each in found.items()
    ]
    print(table([("MiB", "measured", "planned", "planned / measured"), *rows]))
    if args.json:
        write(args.json, {"machine": machine(), "torch": torch.__version__, "peaks": found})
