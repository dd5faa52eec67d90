"""What is compared, checked before anything is trained, and never mixed with another comparison."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eval.fingerprint import fingerprint
from eval.store import Record, write_json
from eval.task import load_task
from llava_compete.checkpoint import changed_configs, read_config
from llava_compete.config import DataArgs, ModelArgs, given_keys, parse, read_recipe
from llava_compete.model import LlavaCompeteForConditionalGeneration
from llava_compete.moe import RoutingChange
from llava_compete.moe.routers import ROUTERS
from llava_compete.names import nearest
from llava_compete.training.args import TrainArgs
from llava_compete.training.callbacks import build_schedule

REFERENCE = "topk"  # the router that the others are held against
# What a job says itself, and what would make routers differ in more than themselves.
OF_A_JOB = ("router", "fresh_routers", "router_seed", "seed", "data_seed", "output_dir", "resume")
OF_A_ROUTER = ("router_options", "loss_weights")
# The layers of a model take consecutive seeds: so far apart that no two seeds share a gate.
SEED_STRIDE = 1000


class Job(NamedTuple):
    """One training."""

    router: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.router}-{self.seed}"


class Args(NamedTuple):
    """The recipe, read without DeepSpeed, which would be set up for the whole process.

    To be read before a trainer is made: reading resets what trainers have set up.
    """

    model: ModelArgs
    data: DataArgs
    train: TrainArgs
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that decides the numbers, and where they go."""

    recipe: tuple[str, ...]  # the recipe's file and flags that override its keys
    routers: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]  # of eval: held-out questions
    data_root: Path
    out: Path
    asked: tuple[str, ...] | None = None  # groups of samples that are to be answered; None: all
    limit: int | None = None  # samples taken of each task; None: all
    routed: int = 32  # samples of each task on which the routing is watched
    launch: bool = False  # train by scripts/train.sh, in processes of its own
    discard: bool = False  # remove a job's weights once it is scored

    def __post_init__(self) -> None:
        for name in self.routers:
            if name not in ROUTERS:
                raise ValueError(f"routers: {name!r} is not known{nearest(name, ROUTERS)}")
        if REFERENCE not in self.routers:
            raise ValueError(
                f"routers={list(self.routers)} must name {REFERENCE}, which the others are held "
                f"against"
            )
        for key in ("routers", "seeds", "tasks"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key}={list(values)} must be distinct, and one at least")
        for key in ("limit", "routed"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")

    def jobs(self) -> list[Job]:
        """Seed by seed, so that what is done of a broken run can be compared."""
        return [Job(router, seed) for seed in self.seeds for router in self.routers]

    def file(self, job: Job) -> Path:
        """The job's result; there once it is whole."""
        return self.out / "jobs" / f"{job.name}.json"

    def folder(self, job: Job) -> Path:
        """The job's checkpoint and answers."""
        return self.out / "jobs" / job.name

    def argv(self, job: Job) -> list[str]:
        """The words of ``llava-compete train`` that make the job's training."""
        values: dict[str, Any] = {
            "router": job.router,
            "fresh_routers": "true",
            "router_seed": SEED_STRIDE * job.seed,
            "seed": job.seed,
            "output_dir": self.folder(job) / "checkpoint",
            "resume": "auto",
        }
        return [*self.recipe, *_flags(values)]

    def args(self) -> Args:
        """The recipe's values; ValueError for keys that are not the recipe's to say."""
        given = given_keys(self.recipe)
        if wrong := sorted(given & {*OF_A_JOB, *OF_A_ROUTER}):
            raise ValueError(
                f"recipe {self.recipe[0]}: {wrong} cannot be said here: a comparison sets router, "
                f"seeds and folders itself (--routers, --seeds, --out), and every router has its "
                f"own defaults"
            )
        without = [*self.recipe, "--deepspeed", ""]
        model, data, train = parse((ModelArgs, DataArgs, TrainArgs), without, prog="compare")
        return Args(model, data, train, train.device)

    def change(self, router: str, model: ModelArgs) -> RoutingChange:
        """The routing of a router's jobs, but for the seed; ``model`` is of the recipe."""
        parts = tuple(model.router_parts) if model.router_parts else None
        return RoutingChange(router=router, top_k=model.top_k, parts=parts, fresh=True)


def check(comparison: Comparison) -> None:
    """ValueError for what would stop a job: recipe, checkpoint, data, tasks, a misplaced router."""
    args = comparison.args()
    checkpoint = Path(args.model.checkpoint)
    if not Path(args.data.data_path).is_file():
        raise ValueError(f"data_path {args.data.data_path} does not exist")
    groups = {
        sample.group
        for name in comparison.tasks
        for sample in load_task(name, comparison.data_root).samples
    }
    for group in comparison.asked or ():
        if group not in groups:
            raise ValueError(
                f"asked: no sample of {list(comparison.tasks)} is in group {group!r}; groups: "
                f"{sorted(groups)}"
            )
    for router in comparison.routers:
        config = read_config(checkpoint)
        change = comparison.change(router, args.model)
        configs = changed_configs(config, change, checkpoint)
        config.moe = {part: values.to_dict() for part, values in configs.items()}
        with torch.device("meta"):
            model = LlavaCompeteForConditionalGeneration(config)
        build_schedule(model, args.train, max_steps=0)


def claim(comparison: Comparison) -> None:
    """Write ``settings.json``; ValueError where ``out`` has the jobs of other settings.

    Routers and seeds are not among the settings: jobs may be added to those that are done.
    """
    settings = _settings(comparison)
    file = comparison.out / "settings.json"
    if file.is_file():
        held = json.loads(file.read_text())
        if changed := list(_differences(held, settings)):
            raise ValueError(
                f"{comparison.out} holds jobs of other settings: {'; '.join(changed)}. Give "
                f"another --out, or remove it"
            )
    write_json(file, settings)


def _settings(comparison: Comparison) -> Record:
    args = comparison.args()
    recipe = read_recipe(Path(comparison.recipe[0]))
    checkpoint = Path(args.model.checkpoint)
    return {
        "recipe": recipe,
        "flags": list(comparison.recipe[1:]),
        "checkpoint": fingerprint(checkpoint, "", comparison.out / "fingerprint.json", {}),
        "data": _digest(Path(args.data.data_path)),
        "tasks": {
            name: [load_task(name, comparison.data_root).version, str(comparison.data_root)]
            for name in comparison.tasks
        },
        "asked": None if comparison.asked is None else list(comparison.asked),
        "limit": comparison.limit,
        "routed": comparison.routed,
    }


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*held, *now}):
        before, after = held.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from (f"{key}.{text}" for text in _differences(before, after))
        else:
            yield f"{key} was {before}, is {after}"


def _flags(values: Mapping[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]
