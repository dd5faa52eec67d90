"""What a training run left behind, and the numbers that are drawn from it.

``LlavaTrainer`` logs, at each step, loss, language, step_seconds and for every part with experts
PART/load/0..E-1, PART/competing_layers and PART/NAME of each router loss; PART/agreement only at
steps at which a layer of the part competed.  E experts, K chosen per token.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import yaml

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # saved, but no parameters
NOT_LOSSES = ("agreement", "competing_layers")


class Series(NamedTuple):
    """A logged quantity at the steps that have it."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Part:
    """A part of the model with experts."""

    name: str
    num_experts: int
    top_k: int
    router: str
    num_layers: int  # that have experts

    @property
    def chance(self) -> float:
        """Agreement of two choices of K among E that know nothing of each other."""
        return self.top_k / self.num_experts


@dataclass(frozen=True)
class TrainingRun:
    """An output directory of ``llava-compete train``; ``entries`` are the logged steps in order."""

    path: Path
    config: dict[str, Any]
    recipe_text: str
    entries: list[dict[str, float]]

    @property
    def recipe(self) -> dict[str, Any]:
        """The keys that were given and the values they came to."""
        values: dict[str, Any] = yaml.safe_load(self.recipe_text)
        return values

    @property
    def parts(self) -> list[Part]:
        """The parts with experts; none in a dense model."""
        depth = self.config["text_config"]["num_hidden_layers"]
        every = {"language_model": depth, "projector": 1}
        return [
            Part(
                name,
                moe["num_experts"],
                moe["top_k"],
                moe["router"],
                len(moe["layers"] or ()) or every[name],
            )
            for name, moe in (self.config.get("moe") or {}).items()
        ]

    @property
    def every_step(self) -> bool:
        """Whether every step was logged; otherwise an entry is a mean over several."""
        return [entry["step"] for entry in self.entries] == list(range(1, len(self.entries) + 1))

    def series(self, key: str) -> Series:
        """``key`` at every step that has it."""
        found = [(int(entry["step"]), entry[key]) for entry in self.entries if key in entry]
        return Series([step for step, _ in found], [value for _, value in found])

    def loss_names(self) -> list[str]:
        """The router losses that any part has, the commonest first."""
        counts: dict[str, int] = {}
        names = {part.name for part in self.parts}
        for entry in self.entries:
            for part, _, name in (key.partition("/") for key in entry):
                # A name with more slashes is a load, or a routing figure of one layer.
                if part in names and name not in NOT_LOSSES and "/" not in name:
                    counts[name] = counts.get(name, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))


def read_training(directory: Path) -> TrainingRun:
    """ValueError where a file that the trainer leaves is missing or holds no step."""
    state = json.loads(_text(directory / "trainer_state.json", "when the run has ended"))
    entries = [entry for entry in state["log_history"] if "loss" in entry]
    if not entries:
        raise ValueError(
            f"{directory / 'trainer_state.json'} logs no step: was logging_steps larger than the "
            f"number of steps?"
        )
    config = json.loads(_text(directory / "config.json", "with the trained model"))
    recipe = _text(directory / "recipe.yaml", "when the run begins")
    return TrainingRun(directory, config, recipe, entries)


def _text(path: Path, when: str) -> str:
    if not path.is_file():
        raise ValueError(
            f"no {path.name} in {path.parent}: `llava-compete train` writes it into output_dir "
            f"{when}; is this a training's output_dir, and did the training end?"
        )
    return path.read_text(encoding="utf-8")


def competing_layers(run: TrainingRun, part: Part) -> Series:
    """Layers of the part that competed, step by step; empty if the part's router never competes."""
    series = run.series(f"{part.name}/competing_layers")
    return series if any(series.values) else Series([], [])


def competing_steps(run: TrainingRun) -> set[int]:
    """The steps at which a layer of any part competed."""
    found = (competing_layers(run, part) for part in run.parts)
    return {
        step for series in found for step, n in zip(series.steps, series.values, strict=True) if n
    }


class PartSummary(NamedTuple):
    """One part over a run; the means are None where no layer of it ever competed."""

    competing: int  # steps
    share: float  # of all steps
    agreement: float | None  # mean over the competing steps
    late_agreement: float | None  # the same over the last third of them
    least_load: float  # of an expert, mean over the last tenth of the steps
    most_load: float


def summarise(run: TrainingRun, part: Part) -> PartSummary:
    """The part's numbers; ValueError where the log has no load of its experts."""
    agreement = run.series(f"{part.name}/agreement").values
    competing = sum(n > 0 for n in competing_layers(run, part).values)
    loads = [run.series(f"{part.name}/load/{e}").values for e in range(part.num_experts)]
    if not all(loads):
        raise ValueError(
            f"{run.path / 'trainer_state.json'} has no {part.name}/load of each of the "
            f"{part.num_experts} experts in config.json: are the two of one training?"
        )
    final = [fmean(_tail(load, Fraction(1, 10))) for load in loads]
    return PartSummary(
        competing=competing,
        share=competing / len(run.entries),
        agreement=fmean(agreement) if agreement else None,
        late_agreement=fmean(_tail(agreement, Fraction(1, 3))) if agreement else None,
        least_load=min(final),
        most_load=max(final),
    )


def _tail(values: Sequence[float], share: Fraction) -> Sequence[float]:
    """The last ``share`` of the values, at least one."""
    return values[-math.ceil(len(values) * share) :]


class Cost(NamedTuple):
    """What competition costs, in optimizer steps without it."""

    ratio: float  # mean step / plain step
    competing: int  # steps
    plain: int
    competing_seconds: float  # medians
    plain_seconds: float


def competition_cost(run: TrainingRun) -> Cost | None:
    """Mean step over plain step, of medians; None without steps of both kinds.

    A step in which no layer competes is a plain SMoE step: the router does what topk does. The
    first step, in which the allocator warms up, is left out. Medians, because a step during which
    the machine did something else would drag a mean along.
    """
    if not run.every_step:
        return None
    competing: list[float] = []
    plain: list[float] = []
    among = competing_steps(run)
    for step, seconds in zip(*run.series("step_seconds"), strict=True):
        if step > 1:
            (competing if step in among else plain).append(seconds)
    if not competing or not plain:
        return None
    share = len(competing) / (len(competing) + len(plain))
    slow, quick = median(competing), median(plain)
    return Cost(share * slow / quick + 1 - share, len(competing), len(plain), slow, quick)


def headlines(directory: Path) -> list[str]:
    """What to know of a training with experts in a line each: agreement by part, and cost."""
    run = read_training(directory)
    lines = []
    for part in run.parts:
        found = summarise(run, part)
        if found.agreement is not None:
            lines.append(
                f"{part.name}: router and competition agree on {found.agreement:.3f} of the "
                f"winners (last third {found.late_agreement:.3f}), chance K/E {part.chance:.3f}, "
                f"{found.competing} of {len(run.entries)} steps with competition"
            )
    cost = competition_cost(run)
    if cost is not None:
        lines.append(f"a mean step takes {cost.ratio:.3f} times as long as a plain SMoE step")
    return lines


class Size(NamedTuple):
    """How many parameters a checkpoint holds, and how many of them one token meets."""

    total: int
    active: int


def checkpoint_size(run: TrainingRun) -> Size | None:
    """From the headers of the weight files; None where the directory holds no weights.

    A token meets K of the E experts of each layer.
    """
    idle = {part.name: 1 - Fraction(part.top_k, part.num_experts) for part in run.parts}
    total, unmet = 0, Fraction(0)
    for path in sorted(run.path.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name == "__metadata__" or name.endswith(BUFFERS):
                continue
            size = math.prod(tensor["shape"])
            total += size
            if ".experts." in name:
                unmet += size * idle[name.split(".")[0]]
    return Size(total, total - round(unmet)) if total else None
