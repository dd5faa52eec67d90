"""Routing figures during training, at every ``routing_steps``-th step and at no cost elsewhere."""

from contextlib import ExitStack
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from llava_compete.routing.charts import (
    curves_chart,
    kinds_of,
    load_chart,
    matrices_chart,
    matrices_of,
)
from llava_compete.routing.collect import part_figures, plain
from llava_compete.routing.watch import RoutingTally, watching

if TYPE_CHECKING:
    from llava_compete.training.args import TrainArgs
    from llava_compete.training.trainer import LlavaTrainer

SCALARS = (
    "entropy",
    "experts_per_token",
    "margin",
    "relative_margin",
    "agreement",
    "agreement_shuffled",
    "drop_top1",
)


class RoutingCallback(TrainerCallback):
    """Watches all micro-batches of a step and logs PART/layer_N/KIND/FIGURE with it.

    A layer that competes in the step has nothing to say: not its router chose. Where wandb is on
    it gets charts too.
    """

    def __init__(self, trainer: "LlavaTrainer") -> None:
        steps = trainer.args.routing_steps
        if steps < 0:
            raise ValueError(f"routing_steps={steps} must be 0 (never) or more")
        if not trainer.model.moe_layers():
            raise ValueError(
                f"routing_steps={steps}: a dense checkpoint has no router; leave it out, or make "
                f"experts by `llava-compete upcycle`"
            )
        self.trainer = trainer
        self.tally = RoutingTally()
        self.watch = ExitStack()  # holds the hooks for the span of a step

    def on_step_begin(
        self, args: "TrainArgs", state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if (state.global_step + 1) % args.routing_steps == 0:
            self.tally = RoutingTally()
            self.watch.enter_context(watching(self.trainer.model, self.tally))

    def on_step_end(
        self, args: "TrainArgs", state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % args.routing_steps:
            return
        self.watch.close()
        self._sum_over_ranks()
        parts = plain(part_figures(self.trainer.model, self.tally))
        self.trainer.note(scalars(parts))
        control.should_log = True
        if "wandb" in args.report_to and state.is_world_process_zero:
            import wandb  # where its user wants it

            images = {name: wandb.Image(image) for name, image in charts(parts).items()}
            wandb.log({**images, "train/global_step": state.global_step})

    def _sum_over_ranks(self) -> None:
        """All sums in one collective; every rank has run the same layers."""
        sums = [
            value
            for _, tallies in sorted(self.tally.tallies.items())
            for tally in tallies
            for value in tally.sums.values()
        ]
        if not sums:
            return  # every layer competed
        flat = torch.cat([value.flatten() for value in sums])
        flat = self.trainer.accelerator.reduce(flat, reduction="sum")
        for value, total in zip(sums, flat.split([v.numel() for v in sums]), strict=True):
            value.copy_(total.view_as(value))


def scalars(parts: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """What is known of PART/layer_N/KIND/FIGURE, and PART/layer_N/gap."""
    found = {}
    for part, figures in parts.items():
        for layer in figures["layers"]:
            prefix = f"{part}/layer_{layer['layer']}"
            found[f"{prefix}/gap"] = layer["gap"]
            for kind, values in layer["kinds"].items():
                found |= {f"{prefix}/{kind}/{name}": values[name] for name in SCALARS}
    return {name: torch.tensor(value) for name, value in found.items() if value is not None}


def charts(parts: dict[str, dict[str, Any]]) -> dict[str, Image.Image]:
    """The report's charts of each part, by name."""
    drawn = {}
    for part, figures in parts.items():
        if not kinds_of(figures):
            continue
        drawn[f"routing/{part}/load"] = load_chart(figures)
        if len(figures["layers"]) > 1:
            drawn[f"routing/{part}/layers"] = curves_chart(figures)
        for name in matrices_of(figures):
            drawn[f"routing/{part}/{name}"] = matrices_chart(figures, name)
    return {name: Image.open(BytesIO(png)) for name, png in drawn.items()}
