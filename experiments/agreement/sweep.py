"""Forms of distillation against each other on competitions that do not move."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.agreement.gates import (
    FORMS,
    Outcomes,
    distil,
    held_out_agreement,
    linear_bound,
    make_gate,
)
from experiments.agreement.tasks import of_model, recipe_args, synthetic
from llava_compete.checkpoint import load
from llava_compete.data import LlavaDataset

STEPS = (4, 20, 80)  # competition steps of a layer; 7 % of 60, 300 and 1,100 optimizer steps
RATES = (3e-4, 3e-3, 3e-2)  # of the gate, by AdamW
TOKENS = 1600  # of a competition step
TOP_K = 2
HIDDEN = 64  # of the wider gate
SEEN = 0.75  # share of the tokens that the gates learn from
TASKS: dict[str, dict[str, float]] = {
    "noise 0.02": {"perturbation": 0.02},
    "noise 0.1": {"perturbation": 0.1},
    "noise 0.5": {"perturbation": 0.5},
    "drop-upcycling 0.25": {"dropped": 0.25},
    "drop-upcycling 0.5": {"dropped": 0.5},
}


def synthetic_sweep(file: Path, seeds: int = 3) -> None:
    """Every form, rate and number of steps on each synthetic task; kept if done before."""
    if file.is_file():
        return
    rows = []
    for task, recipe in TASKS.items():
        for seed in range(seeds):
            outcomes = synthetic(**recipe, tokens=20_000, seed=seed)  # type: ignore[arg-type]
            rows += [{"task": task, "seed": seed, **row} for row in sweep(outcomes, seed=seed)]
    file.write_text(json.dumps(rows))


def layer_sweep(recipe: str, file: Path, rows: int = 100) -> None:
    """The same on the MoE layers of the recipe's checkpoint and the tokens of its first rows."""
    if file.is_file():
        return
    model_args, data_args = recipe_args(recipe)
    model, processor = load(model_args.checkpoint)
    dataset = LlavaDataset(
        Path(data_args.data_path), Path(data_args.image_folder), processor, data_args.max_length
    )
    found = of_model(model, dataset, processor, range(min(rows, len(dataset))))
    results = []
    for name, outcomes in found.items():
        results += [{"task": name, "seed": 0, **row} for row in sweep(outcomes, seed=0)]
    file.write_text(json.dumps(results))


def sweep(outcomes: Outcomes, *, seed: int) -> list[dict[str, Any]]:
    """Held-out agreement by form, learning rate, steps and gate; each with the linear bound."""
    seen, unseen = outcomes.split(SEEN)
    width, num_experts = seen.features_TD.shape[1], seen.affinity_TE.shape[1]
    bound = linear_bound(seen, unseen, TOP_K)
    error = (seen.affinity_TE.softmax(dim=-1) - 1 / num_experts).square().mean()
    rows = []
    for form, loss in FORMS.items():
        for rate in RATES:
            for steps in STEPS:
                for hidden in (None, HIDDEN) if form == "outcome" else (None,):
                    gate = distil(
                        make_gate(width, num_experts, hidden=hidden, seed=seed),
                        seen,
                        loss,
                        top_k=TOP_K,
                        steps=steps,
                        tokens=min(TOKENS, len(seen.features_TD)),
                        learning_rate=rate,
                    )
                    rows.append(
                        {
                            "form": form if hidden is None else f"{form}, gate of {hidden} hidden",
                            "rate": rate,
                            "steps": steps,
                            "agreement": held_out_agreement(gate, unseen, TOP_K),
                            "bound": bound,
                            "target_mse_to_uniform": float(error),
                        }
                    )
    return rows


def share_of_bound(rows: list[dict[str, Any]]) -> float:
    """Mean agreement as a share of the linear bound."""
    return fmean(row["agreement"] / row["bound"] for row in rows)
