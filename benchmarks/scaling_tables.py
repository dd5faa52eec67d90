"""Tables of `python -m benchmarks scaling`: lists of rows, the first of them the heads."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig

from benchmarks.cost import (
    LANGUAGE,
    Load,
    Sizes,
    break_even,
    collectives,
    expert_parallel_traffic,
    expert_traffic,
    operations,
    sent,
    simulated,
    sizes,
)
from benchmarks.moe_cases import Case
from benchmarks.traffic_cases import HEADS, beside_model, measure
from llava_compete.count import read_model
from llava_compete.model import LlavaCompeteConfig

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Assumed:
    """Figures that nothing here has measured."""

    flops: float = 400e12  # that a GPU achieves in a second
    nvlink: float = 450e9  # bytes that a GPU sends in a second to those of its machine
    network: float = 50e9  # the same to other machines: 400 Gb/s for each GPU


ASSUMED = Assumed()
RANKS = (8, 32, 256)
PHI, SEVEN = "Phi-3.5-mini, 4 experts", "7B, 4 experts"
BASE = Load()


def real_models() -> dict[str, LlavaCompeteConfig]:
    """Language models with 4 experts of which 2 are chosen, in all layers; SigLIP, frozen."""
    phi = read_model("design_card")
    seven = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    values = {"vision_config": phi.vision_config, "projector": phi.projector, "moe": phi.moe}
    return {PHI: phi, SEVEN: LlavaCompeteConfig(text_config=seven, **values)}


def traffic() -> Rows:
    """Bytes of DeepSpeed's collectives, in those of the trained parameters, and sent in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    return [HEADS, *(row for name, each in found.items() for row in beside_model(name, each))]


def growth() -> Rows:
    """How the model's figures change as one quantity doubles."""
    config = real_models()[PHI]
    text, moe = config.text_config, (config.moe or {})[LANGUAGE]
    changed: dict[str, tuple[LlavaCompeteConfig, Load]] = {
        "rows": (config, replace(BASE, rows=2 * BASE.rows)),
        "tokens of a row": (config, replace(BASE, length=2 * BASE.length)),
        "experts E": (_with(config, moe=moe | {"num_experts": 2 * moe["num_experts"]}), BASE),
        "chosen K": (_with(config, moe=moe | {"top_k": 2 * moe["top_k"]}), BASE),
        "layers": (_with(config, layers=2 * text.num_hidden_layers), replace(BASE, cap=6)),
        "competition rate, cap": (config, replace(BASE, rate=2 * BASE.rate, cap=2 * BASE.cap)),
        "ranks": (config, replace(BASE, ranks=2 * BASE.ranks)),
    }
    heads = ("twice the", "router step", "mean step", "mean / router", "slowest / router")
    base = _figures(config, BASE)
    rows: Rows = [(*heads, "ZeRO-2 sends", "ZeRO-3 sends")]
    rows.append(("(nothing)", 1.0, 1.0, *_surcharges(config, BASE), 1.0, 1.0))
    for name, (other, load) in changed.items():
        router, mean, two, three = (
            new / old for new, old in zip(_figures(other, load), base, strict=True)
        )
        rows.append((name, router, mean, *_surcharges(other, load), two, three))
    return rows


def _with(
    config: LlavaCompeteConfig, moe: dict[str, Any] | None = None, layers: int | None = None
) -> LlavaCompeteConfig:
    values = config.to_dict()
    text = {**config.text_config.to_dict()}
    if layers is not None:
        text["num_hidden_layers"] = layers
    changed = config.moe if moe is None else {LANGUAGE: moe}
    return LlavaCompeteConfig(
        text_config=type(config.text_config)(**text),
        vision_config=values["vision_config"],
        projector=config.projector,
        moe=changed,
    )


def _figures(config: LlavaCompeteConfig, load: Load) -> tuple[float, ...]:
    found = operations(config, load)
    return (
        found.router,
        found.mean,
        zero_sends("zero2", config, load),
        zero_sends("zero3", config, load),
    )


def _surcharges(config: LlavaCompeteConfig, load: Load) -> tuple[float, float]:
    found = operations(config, load)
    return found.mean / found.router, found.slowest / found.router


def zero_sends(stage: str, config: LlavaCompeteConfig, load: Load) -> float:
    """Bytes a rank sends in the mean step."""
    of: Sizes = sizes(config)
    moved = collectives(stage, of, load.item, checkpointing=load.checkpointing, competing=load.rate)
    return sent(moved, load.ranks)


def schedule() -> Rows:
    """Of 10,000 steps of the schedule: the share of layers that compete, and the most at once."""
    rows: Rows = [("layers", "rate", "cap", "simulated rate", "most layers", "competes at random")]
    for layers, rate, cap in ((10, 0.07, 3), (27, 0.07, 3), (32, 0.07, 3), (32, 0.03, 1)):
        mean, most = simulated(layers, rate, cap, steps=10_000)
        # Of a mean of 10,000 draws of every layer, were they independent; the cap lessens it.
        error = (rate * (1 - rate) / (10_000 * layers)) ** 0.5
        rows.append((layers, rate, cap, mean, most, f"{rate} +- {2 * error:.4f}"))
    return rows


def real_sizes() -> Rows:
    """Seconds of compute and of communication of the mean step, as if each were alone."""
    heads = ("", "GPUs", "tokens", "compute s", "GB sent", "NVLink s", "400 Gb/s s")
    rows: Rows = [(*heads, "bounds: NVLink", "400 Gb/s", "tokens where even: NVLink", "400 Gb/s")]
    for name, config in real_models().items():
        for stage in ("zero2", "zero3"):
            for ranks in RANKS:
                load = replace(BASE, ranks=ranks)
                compute = operations(config, load).mean / ASSUMED.flops
                moved = zero_sends(stage, config, load)
                times = (moved / ASSUMED.nvlink, moved / ASSUMED.network)
                bound = ["compute" if compute >= time else "sending" for time in times]
                even = [round(load.tokens * time / compute) for time in times]
                first = (f"{name}, {stage}", ranks, load.tokens, compute, moved / 1e9)
                rows.append((*first, *times, *bound, *even))
    return rows


def expert_parallelism() -> Rows:
    """Bytes for the experts alone, of ZeRO-3 and of a part of the experts on each rank."""
    heads = ("", "checkpointing", "tokens", "ZeRO-3: GB for experts", "one expert a rank: GB")
    rows: Rows = [(*heads, "less by, s of 400 Gb/s", "sends less below, tokens")]
    for name, config in real_models().items():
        parallel = config.moe_configs[LANGUAGE].num_experts
        for checkpointing in (True, False):
            for number in (1, 4, 16):
                load = replace(BASE, rows=number, ranks=32, checkpointing=checkpointing)
                gathered = expert_traffic(config, load)
                exchanged = expert_parallel_traffic(config, load, parallel)
                less = (gathered - exchanged) / ASSUMED.network
                even = round(break_even(config, load))
                first = (name, "yes" if checkpointing else "no", load.tokens)
                rows.append((*first, gathered / 1e9, exchanged / 1e9, less, even))
    return rows


@dataclass(frozen=True)
class Line:
    """Seconds of a layer, forward and backward, with T tokens to K of E experts each."""

    pair: float  # of a token in an expert
    expert: float  # of an expert's weights and gradients, whoever goes there

    def __call__(self, case: Case) -> float:
        return self.pair * case.tokens * case.top_k + self.expert * case.experts


def points(curves: Path, subject: str = "ours") -> dict[str, dict[int, float]]:
    """Measured seconds of a router step by axis and place. ValueError where there are none."""
    found = json.loads(curves.read_text()).get("curves") if curves.exists() else None
    if not found:
        raise ValueError(
            f"{curves} has no curves; `python -m benchmarks moe --parts curves` measures them, or "
            "name another file by --curves"
        )
    return {
        axis: {int(place): each["seconds"]["median"] for place, each in curve[subject].items()}
        for axis, curve in found.items()
    }


def at(axis: str, place: int) -> Case:
    """The case at a place of an axis, "tokens, 4 experts": what changes, what does not."""
    varied, kept = axis.split(", ")
    number, field = kept.split()
    return Case(**{**Case().to_dict(), field: int(number), varied: place})


def fit(measured: dict[str, dict[int, float]]) -> Line:
    """The line with the least squares of relative errors at all points."""
    seconds, given = [], []
    for axis, curve in measured.items():
        for place, time in curve.items():
            case = at(axis, place)
            given.append((case.tokens * case.top_k / time, case.experts / time))
            seconds.append(1.0)
    pair, expert = np.linalg.lstsq(np.array(given), np.array(seconds), rcond=None)[0]
    return Line(pair=float(pair), expert=float(expert))


def layer(curves: Path) -> Rows:
    """Measured milliseconds, and the line's."""
    measured = points(curves)
    line = fit(measured)
    rows: Rows = [("axis", "at", "measured ms", "line ms", "measured / line", "of it per expert")]
    for axis, curve in measured.items():
        for place, seconds in curve.items():
            case = at(axis, place)
            of_weights = line.expert * case.experts / line(case)
            both = (1e3 * seconds, 1e3 * line(case), seconds / line(case))
            rows.append((axis, place, *both, of_weights))
    rows.append(("us per token and expert", 0, 1e6 * line.pair, "", "", ""))
    rows.append(("us per expert", 0, 1e6 * line.expert, "", "", ""))
    return rows
