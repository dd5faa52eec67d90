"""A model of what a training step costs: operations of a rank, bytes that it sends.

Operations are those of llava_compete.count, and the causal attention's. Bytes are those of rings:
of a tensor of S bytes a rank sends S (N - 1) / N in an all-gather or reduce-scatter among N ranks,
twice that in an all-reduce.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import AutoConfig

from llava_compete.count import Count, count
from llava_compete.model import LlavaCompeteConfig
from llava_compete.moe.schedule import CompetitionSchedule

LANGUAGE = "language_model"
MATRICES = 3  # of a gated expert: gate, up, down
STAGES = ("zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Load:
    """What a rank works on in a step, rows with one picture each, and how."""

    rows: int = 4
    length: int = 2048  # tokens of a row, those of its picture included
    rate: float = 0.07  # of competition
    cap: int = 3  # competing layers of a step
    ranks: int = 8
    item: int = 2  # bytes of a parameter and of a gradient
    checkpointing: bool = True

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Operations:
    """FLOPs of a rank in a step."""

    router: float  # in which no layer competes
    mean: float  # of all steps
    slowest: float  # in which as many layers compete as may


def operations(config: LlavaCompeteConfig, load: Load) -> Operations:
    """Of a model whose tower is frozen and whose projector and language model are trained.

    A backward takes twice a forward, a checkpointed decoder runs forward twice. A competing layer
    runs all E experts on all tokens; that is the count of a model with K = E. All MoE layers are
    in the language model, or ValueError.
    """
    if list(config.moe_configs) != [LANGUAGE]:
        raise ValueError(f"parts with experts are {list(config.moe_configs)}, not [{LANGUAGE!r}]")
    moe = config.moe_configs[LANGUAGE]
    chosen, dense = (_counts(_as_text(config, top_k)) for top_k in (moe.top_k, moe.num_experts))
    passes = 4 if load.checkpointing else 3
    once = load.rows * chosen["vision"].flops_picture
    once += 3 * load.rows * chosen["projector"].flops_picture
    language, competing = (_language(found, config, load) for found in (chosen, dense))
    extra = passes * (competing - language)  # all layers compete
    router = once + passes * (language + attention(config, load))
    return Operations(
        router=router,
        mean=router + load.rate * extra,
        slowest=router + min(1.0, load.cap / moe_layers(config)) * extra,
    )


def _language(counts: Mapping[str, Count], config: LlavaCompeteConfig, load: Load) -> int:
    """FLOPs of a forward of the rows in the language model, scores left out."""
    found = counts[LANGUAGE]
    text = load.length - config.vision.num_patches
    return load.rows * (found.flops_picture + text * found.flops_text_token)


def attention(config: LlavaCompeteConfig, load: Load) -> int:
    """FLOPs of a forward's scores and their sums of values: half of L x L, two products."""
    text = config.text_config
    return load.rows * text.num_hidden_layers * 2 * load.length**2 * text.hidden_size


def moe_layers(config: LlavaCompeteConfig) -> int:
    chosen = config.moe_configs[LANGUAGE].layers
    return config.text_config.num_hidden_layers if chosen is None else len(chosen)


def _as_text(config: LlavaCompeteConfig, top_k: int) -> str:
    """The configuration, routed to so many experts, as what a cache can have for a key."""
    values = config.to_dict()
    moe = {"num_experts": config.moe_configs[LANGUAGE].num_experts, "top_k": top_k}
    layers = config.moe_configs[LANGUAGE].layers
    values["moe"] = {LANGUAGE: {**moe, "router": "topk", "layers": layers}}
    return json.dumps(values, default=str)


@lru_cache(maxsize=32)
def _counts(text: str) -> dict[str, Count]:
    values: dict[str, Any] = json.loads(text)
    language = values.pop("text_config")
    config = LlavaCompeteConfig(text_config=AutoConfig.for_model(**language), **values)
    return count(config)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    parameters: int
    trained: int
    experts: int  # of those in experts


def sizes(config: LlavaCompeteConfig) -> Sizes:
    """Of the model that ``operations`` is of."""
    moe = config.moe_configs[LANGUAGE]
    counts = _counts(_as_text(config, moe.top_k))
    whole, tower = counts["all"].total, counts["vision"].total
    text = config.text_config
    one = MATRICES * text.hidden_size * text.intermediate_size
    experts = moe_layers(config) * moe.num_experts * one
    return Sizes(parameters=whole, trained=whole - tower, experts=experts)


def sent(bytes_by_kind: Mapping[str, float], ranks: int) -> float:
    """Bytes a rank sends for collectives of so many bytes, by kind."""
    share = (ranks - 1) / ranks
    return sum((2 if kind == "all-reduce" else 1) * share * b for kind, b in bytes_by_kind.items())


def collectives(
    stage: str, of: Sizes, item: int, *, checkpointing: bool, competing: float, owners: bool = False
) -> dict[str, float]:
    """Bytes of a step's collectives by kind, as DeepSpeed 0.19 calls them.

    ZeRO-1 and 2 gather the trained parameters after the step; they all-reduce gradients, with
    ``owners`` (use_multi_rank_bucket_allreduce: false) reduce each to the rank that has its state.
    ZeRO-3 gathers all parameters for the forward and for the backward, and scatters the reduced
    gradients. What a checkpointed block runs again it gathers again, but for the experts of a
    layer that does not compete (``competing``: the share that does): the backward that asks for
    the second forward is theirs and has gathered them. One micro-batch a step.
    """
    if stage not in STAGES:
        raise ValueError(f"{stage=} must be one of {STAGES}")
    trained = float(of.trained * item)
    if stage != "zero3":
        return {"reduce" if owners else "all-reduce": trained, "all-gather": trained}
    gathered = 2.0 * of.parameters
    if checkpointing:
        gathered += of.trained - (1 - competing) * of.experts
    return {"all-gather": gathered * item, "reduce-scatter": trained}


def expert_traffic(config: LlavaCompeteConfig, load: Load) -> float:
    """Bytes a rank sends under ZeRO-3 for the experts alone."""
    experts = sizes(config).experts
    again = load.rate if load.checkpointing else 0.0
    return (3 + again) * experts * load.item * (load.ranks - 1) / load.ranks


def expert_parallel_traffic(config: LlavaCompeteConfig, load: Load, parallel: int) -> float:
    """Bytes a rank sends where each of ``parallel`` ranks has a part of the experts.

    Each token goes to its K experts and comes back, in the forward, its repetition and the
    backward; what a rank has of the experts is shared by the other ranks with the same part, as
    by ZeRO-3. In a competing layer a token goes to all E.
    """
    moe = config.moe_configs[LANGUAGE]
    met = moe.top_k + load.rate * (moe.num_experts - moe.top_k)
    passes = 3 if load.checkpointing else 2
    tokens = 2 * passes * load.tokens * met * config.text_config.hidden_size
    away = moe_layers(config) * tokens * load.item * (parallel - 1) / parallel
    replicas = load.ranks // parallel
    own = sizes(config).experts * load.item / parallel * (replicas - 1) / replicas
    return away + (3 + (load.rate if load.checkpointing else 0.0)) * own


def break_even(config: LlavaCompeteConfig, load: Load) -> float:
    """Tokens of a rank's micro-batch below which expert parallelism sends less than ZeRO-3.

    Many ranks: (N - 1) / N is 1. The number of ranks that share the experts then cancels out.
    """
    moe = config.moe_configs[LANGUAGE]
    met = moe.top_k + load.rate * (moe.num_experts - moe.top_k)
    weights = MATRICES * moe.num_experts * config.text_config.intermediate_size
    again, passes = (load.rate, 3) if load.checkpointing else (0.0, 2)
    return (3 + again) * weights / (2 * passes * met)


def simulated(layers: int, rate: float, cap: int, steps: int, seed: int = 0) -> tuple[float, int]:
    """Mean share of the layers that compete in the first ``steps`` steps, and the most in one."""
    schedule = CompetitionSchedule(layers, rate=rate, max_layers=cap, warmup_steps=0, seed=seed)
    numbers = [sum(schedule.competing(step)) for step in range(steps)]
    return sum(numbers) / (steps * layers), max(numbers)
