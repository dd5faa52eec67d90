"""What a recipe takes on each GPU, from the checkpoint's config.json alone.

P parameters, T trained ones, N ranks; b bytes of a parameter.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_compete.checkpoint import changed_configs, read_shape
from llava_compete.config import DataArgs, ModelArgs, parse
from llava_compete.model import LlavaCompeteConfig
from llava_compete.rehearsal import Peak, Rehearsal
from llava_compete.training.args import TrainArgs
from llava_compete.training.prepare import deepspeed_config, routing_change

STAGES = ("none", "zero1", "zero2", "zero3", "zero3_offload")
USABLE = 0.9  # of a GPU's memory; the rest goes to CUDA, NCCL and the allocator's gaps
GIB = 2**30
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters
STATES = 8  # bytes of AdamW's two float32 states of a parameter
LEGEND = """\
GiB of a rank. activations: what the micro-batch adds to the rest at the peak of a step; of it
competition: what competing layers add to those of a step without. rows: the most rows of a
micro-batch that fit. Attention is counted as one that keeps no scores (sdpa, flash), rows as long
as max_length, with one picture and all their text answers."""


@dataclass(frozen=True)
class Rank:
    """Bytes on one GPU at the peak of a step."""

    parameters: int  # under ZeRO-3 with those gathered at once
    gradients: int
    optimizer: int  # states and the float32 copies of the parameters
    activations: int
    competition: int  # the part of activations that competing layers add
    rows: int  # the most rows of a micro-batch that fit; 0: none

    @property
    def total(self) -> int:
        """All but the double count of competition."""
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """Of each stage the figures of a rank."""

    ranks: dict[str, Rank]
    own: Rank  # of the recipe's stage
    own_stage: str
    parameters: int
    trained: int
    rows: int  # of the recipe's micro-batch
    length: int  # tokens of a row
    gpus: int


@dataclass(frozen=True)
class Demand:
    """What forward and backward take in one dtype of the parameters."""

    parameters: int  # P
    trained: int  # T
    own: Peak  # of the recipe's micro-batch, competing where that takes more
    plain: Peak  # of the same without competition
    first: int  # streamed bytes of one row
    each: int  # of every further row

    def most_rows(self, room: float) -> int:
        """Rows whose activations find room."""
        return max(0, 1 + math.floor((room - self.first) / self.each)) if room > 0 else 0


def plan_of(argv: Sequence[str], gpus: int, gpu_memory: float = 80.0) -> Plan:
    """The plan of a recipe with its flags; ``gpu_memory`` in GiB. ValueError for what it lacks."""
    if gpus < 1 or gpu_memory <= 0:
        raise ValueError(f"{gpus=} and {gpu_memory=} must be positive")
    # The machine that plans need not have the GPUs, nor their ranks.
    here = ["--use_cpu", "true", "--tf32", "false", "--deepspeed", ""]
    model_args, data_args, args = parse(
        (ModelArgs, DataArgs, TrainArgs), [*argv, *here], prog="llava-compete plan"
    )
    _check(model_args, data_args, args)
    config = _config(model_args)
    own_stage = _stage(argv)
    zero_dtype = torch.bfloat16 if args.bf16 else torch.float32
    demands = {
        dtype: _demand(config, model_args, data_args, args, dtype)
        for dtype in {torch.float32, zero_dtype}
    }
    room = USABLE * gpu_memory * GIB
    accumulates = args.gradient_accumulation_steps > 1
    ranks = {}
    for stage in STAGES:
        dtype = torch.float32 if stage == "none" else zero_dtype
        ranks[stage] = _rank(stage, demands[dtype], dtype.itemsize, gpus, room, accumulates)
    some = demands[torch.float32]
    return Plan(
        ranks=ranks,
        own=ranks[own_stage],
        own_stage=own_stage,
        parameters=some.parameters,
        trained=some.trained,
        rows=args.per_device_train_batch_size,
        length=data_args.max_length,
        gpus=gpus,
    )


def as_table(plan: Plan, gpu_memory: float) -> str:
    """The plan as a Markdown table below a line that says what it is of."""
    head = (
        f"{plan.parameters:,} parameters, {plan.trained:,} trained; {plan.gpus} GPUs of "
        f"{gpu_memory:g} GiB, of which {USABLE:.0%} are used; micro-batch of {plan.rows} rows of "
        f"{plan.length} tokens"
    )
    columns = ("parameters", "gradients", "optimizer", "activations", "of it competition")
    lines = [f"| stage | {' | '.join(columns)} | total | fits | rows |", "| --- |" + " --: |" * 8]
    for stage, rank in plan.ranks.items():
        parts = (rank.parameters, rank.gradients, rank.optimizer, rank.activations)
        cells = [f"{part / GIB:.2f}" for part in (*parts, rank.competition, rank.total)]
        fits = "yes" if rank.total <= USABLE * gpu_memory * GIB else "no"
        name = f"{stage} (recipe)" if stage == plan.own_stage else stage
        lines.append(f"| {name} | {' | '.join(cells)} | {fits} | {rank.rows} |")
    return "\n".join([head, "", *lines, "", LEGEND])


def _check(model_args: ModelArgs, data_args: DataArgs, args: TrainArgs) -> None:
    if not args.optim.startswith("adamw_torch"):
        raise ValueError(
            f"plan knows the states of adamw_torch, not those of optim={args.optim.value}"
        )
    if model_args.lora:
        raise ValueError("plan does not know lora: leave it out to see what training whole takes")
    if data_args.features:
        raise ValueError("plan runs the image tower: leave features out, which take less")


def _config(args: ModelArgs) -> LlavaCompeteConfig:
    path = Path(args.checkpoint)
    config = read_shape(path)
    routing = routing_change(args)
    if routing:
        changed = changed_configs(config, routing, path)
        config.moe = {part: moe.to_dict() for part, moe in changed.items()}
    return config


def _stage(argv: Sequence[str]) -> str:
    """What the recipe, or a flag behind it, says of DeepSpeed."""
    named = deepspeed_config(argv)
    if not named:
        return "none"
    zero = json.loads(Path(named).read_text()).get("zero_optimization", {})
    stage = f"zero{zero.get('stage', 0)}"
    offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if f"{stage}_offload" in STAGES and offloads:
        return f"{stage}_offload"
    if stage not in STAGES or offloads:
        raise ValueError(f"plan knows {', '.join(STAGES)}; {named} is none of them")
    return stage


def _demand(
    config: LlavaCompeteConfig,
    model_args: ModelArgs,
    data_args: DataArgs,
    args: TrainArgs,
    dtype: torch.dtype,
) -> Demand:
    rehearsal = Rehearsal(
        config,
        trainable=model_args.trainable,
        dtype=dtype,
        autocast=args.bf16 and dtype == torch.float32,
        checkpointing=args.activation_checkpointing,
    )
    model, length = rehearsal.model, data_args.max_length
    patches = config.vision.num_patches
    if length <= patches:
        raise ValueError(f"max_length={length} has no room beside a picture of {patches} tokens")
    rows = args.per_device_train_batch_size
    competitors = model.competitors()
    quiet = [False] * len(competitors)
    plain = rehearsal.peak(rows, length, quiet)
    worst, own = quiet, plain
    most = args.competition_max_layers if args.competition_rate > 0 else 0
    for layers in model.moe_layers().values() if most else ():
        chosen = {id(layer) for layer in layers[:most]}
        competing = [id(layer) in chosen for layer in competitors]
        found = rehearsal.peak(rows, length, competing)
        if found.streamed > own.streamed:
            worst, own = competing, found
    one, two = (rehearsal.peak(number, length, worst).streamed for number in (1, 2))
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Demand(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        own=own,
        plain=plain,
        first=one,
        each=two - one,
    )


def _rank(stage: str, demand: Demand, item: int, gpus: int, room: float, accumulates: bool) -> Rank:
    """As DeepSpeed 0.19 and torch's DistributedDataParallel hold them.

    Without DeepSpeed every rank has all in float32, and with several ranks buckets of gradients
    beside the gradients. ZeRO shares float32 copies and states; stage 1 keeps all gradients until
    the step, stages 2 and 3 a rank's share. Stage 3 gathers at most LIVE_PARAMETERS at once;
    offloaded, the shares are in CPU memory. The optimizer's work on a float32 share of the
    gradients comes when activations are gone, and is no peak of its own.
    """
    parameters, trained = demand.parameters * item, demand.trained * item
    share = -(-demand.trained // gpus)
    if stage == "none":
        optimizer = STATES * demand.trained
        gradients = trained if gpus == 1 else 2 * trained
    else:
        optimizer = (STATES + 4) * share
        gradients = trained if stage == "zero1" else share * item
    if stage.startswith("zero3"):
        gathered = min(demand.parameters, LIVE_PARAMETERS) * item if gpus > 1 else 0
        parameters = parameters // gpus + gathered
        if stage == "zero3_offload":
            parameters, optimizer, gradients = gathered, 0, share * item
    # Gradients that are whole fill the room that activations leave in the backward.
    together = stage in ("none", "zero1") and not accumulates

    def activations(peak: Peak) -> int:
        return max(0, peak.kept - trained) if together else peak.streamed

    own = activations(demand.own)
    rest = parameters + gradients + optimizer
    return Rank(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=own,
        competition=own - activations(demand.plain),
        rows=demand.most_rows(room - rest),
    )
