"""Does the router agree with the competition in a real training?  One run a setting."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from experiments.agreement.gates import held_out_agreement, linear_bound
from experiments.agreement.tasks import of_model
from llava_compete.data import LlavaDataset
from llava_compete.training.prepare import prepare

EVERY = 10  # optimizer steps between two measurements
SEEN_ROWS = 48  # training rows whose tokens the bound is fitted on
OUTCOME = ["--router_options", '{"distillation": "outcome"}']
DETACHED = ["--router_options", '{"distillation": "outcome", "detach": true}']
WEIGHT_ONE = ["--loss_weights", '{"distillation": 1.0}']
FAST_GATE = ["--part_learning_rates", '{"routers": 1e-2}']
FASTER_GATE = ["--part_learning_rates", '{"routers": 3e-2}']
SETTINGS: dict[str, list[str]] = {
    "paper": [],
    "paper, gate rate 1e-2": FAST_GATE,
    "outcome, weight 1": [*OUTCOME, *WEIGHT_ONE],
    "outcome, weight 1, gate rate 1e-2": [*OUTCOME, *WEIGHT_ONE, *FAST_GATE],
    "outcome, weight 1, gate rate 3e-2": [*OUTCOME, *WEIGHT_ONE, *FASTER_GATE],
    "outcome, weight 1, gate rate 1e-2, detached": [*DETACHED, *WEIGHT_ONE, *FAST_GATE],
}


class HeldOutAgreement(TrainerCallback):
    """Measures each part's agreement on held-out rows, before the first step and every EVERY."""

    def __init__(self, model: Any, processor: Any, dataset: LlavaDataset, top_k: int) -> None:
        self.model, self.processor, self.dataset, self.top_k = model, processor, dataset, top_k
        self.curve: list[dict[str, float]] = []

    def measure(self, step: int) -> None:
        """Append the mean agreement over the layers of each part."""
        trained = self.model.training
        found = of_model(self.model, self.dataset, self.processor, range(len(self.dataset)))
        self.model.train(trained)
        point: dict[str, float] = {"step": step}
        for part, layers in self.model.moe_layers().items():
            point[part] = fmean(
                held_out_agreement(layer.router.gate, found[f"{part} {index}"], self.top_k)
                for index, layer in enumerate(layers)
            )
        self.curve.append(point)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.measure(0)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % EVERY == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)


def train_setting(
    name: str, recipe: Sequence[str], held_out: Path, image_folder: Path, directory: Path
) -> dict[str, Any]:
    """Train ``recipe`` with the setting's overrides; its agreement, bound and losses.

    What is there already is read and not trained again.
    """
    result = directory / f"{name.replace(', ', '-').replace(' ', '_')}.json"
    if result.is_file():
        return json.loads(result.read_text())
    trainer, _ = prepare(
        [*recipe, *SETTINGS[name], "--output_dir", str(result.with_suffix("")), "--resume", "auto"]
    )
    model, processor = trainer.model, trainer.processing_class
    top_k = next(iter(model.config.moe_configs.values())).top_k
    unseen_rows = LlavaDataset(held_out, image_folder, processor, 512)
    callback = HeldOutAgreement(model, processor, unseen_rows, top_k)
    trainer.add_callback(callback)
    trainer.train()
    rows = range(min(SEEN_ROWS, len(trainer.train_dataset)))
    seen = of_model(model, trainer.train_dataset, processor, rows)
    unseen = of_model(model, unseen_rows, processor, range(len(unseen_rows)))
    bounds = {
        part: fmean(
            linear_bound(seen[name], unseen[name], top_k)
            for name in (f"{part} {index}" for index in range(len(layers)))
        )
        for part, layers in model.moe_layers().items()
    }
    logs = [entry for entry in trainer.state.log_history if "language" in entry]
    record = {
        "setting": name,
        "overrides": SETTINGS[name],
        "curve": callback.curve,
        "bound": bounds,
        "language": [[entry["step"], entry["language"]] for entry in logs],
    }
    directory.mkdir(parents=True, exist_ok=True)
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.rename(result)
    return record
