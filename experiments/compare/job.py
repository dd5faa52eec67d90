"""A job: train by the recipe, score the checkpoint, keep the numbers in one file."""

import gc
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from eval.fingerprint import fingerprint
from eval.model import LlavaCompete
from eval.plan import RIGHT, Request, plan
from eval.predict import predict
from eval.score import score_samples, task_results
from eval.store import Record, read_predictions, write_json
from eval.task import Sample, Task, load_task
from experiments.compare.settings import Args, Comparison, Job
from llava_compete.checkpoint import load
from llava_compete.model import LANGUAGE
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import RoutingChange
from llava_compete.routing.collect import part_figures
from llava_compete.routing.watch import RoutingTally, watching
from llava_compete.training.output import CHECKPOINT, RECIPE
from llava_compete.training.prepare import prepare, run

REPOSITORY = Path(__file__).parents[2]
TRAINED = "train_results.json"  # what a training writes last
FIGURES = ("entropy", "experts_per_token", "agreement", "agreement_shuffled", "chance")


class Loaded(NamedTuple):
    """A trained checkpoint in a form whose losses do not see the answers."""

    asked: LlavaCompete
    scope: str | None  # "token" where training chose across tokens; None: as trained


def run_job(comparison: Comparison, job: Job) -> Record:
    """The job's numbers, written to its file, whole or not at all."""
    args = comparison.args()
    folder = comparison.folder(job)
    checkpoint = folder / "checkpoint"
    begun = time.perf_counter()
    if not (checkpoint / TRAINED).is_file():
        shutil.rmtree(folder / "eval", ignore_errors=True)  # answers of an earlier training
        _train(comparison, job, checkpoint)
    trained = time.perf_counter()
    record = {
        "router": job.router,
        "seed": job.seed,
        **_training(checkpoint),
        **_score(comparison, args, checkpoint, folder / "eval"),
        "threads": torch.get_num_threads(),
        "train_seconds": round(trained - begun, 3),
        "score_seconds": round(time.perf_counter() - trained, 3),
    }
    write_json(comparison.file(job), record)
    if comparison.discard:
        shutil.rmtree(checkpoint)
    return record


def _train(comparison: Comparison, job: Job, checkpoint: Path) -> None:
    _remove_torn(checkpoint)
    if comparison.launch:
        words = ["bash", str(REPOSITORY / "scripts" / "train.sh"), *comparison.argv(job)]
        subprocess.run(words, check=True)
        return
    run(*prepare(comparison.argv(job)))
    gc.collect()  # the trainer is in a cycle with its callbacks, and holds the optimizer


def _remove_torn(checkpoint: Path) -> None:
    """What a killed training was writing; its recipe and checkpoints, to go on from, stay."""
    for path in checkpoint.iterdir() if checkpoint.is_dir() else ():
        if path.name != RECIPE and not CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _training(checkpoint: Path) -> Record:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "language" in entry]
    return {
        "steps": state["global_step"],
        "curve": [[entry["step"], round(entry["language"], 5)] for entry in logged],
    }


def _score(comparison: Comparison, args: Args, checkpoint: Path, answers: Path) -> Record:
    dtype = "bfloat16" if args.train.bf16 else "float32"
    loaded = load_causal(checkpoint, dtype, args.device)
    model = loaded.asked.model
    batch_size = args.train.per_device_eval_batch_size
    mark = fingerprint(checkpoint, dtype, answers / "fingerprint.json", {"scope": loaded.scope})
    tally = RoutingTally()
    tasks = {name: load_task(name, comparison.data_root) for name in comparison.tasks}
    scores, losses = {}, {}
    for name, task in tasks.items():
        requests = plan(task, mark, shuffled_control=False, limit=comparison.limit)
        # The plan's losses are of some groups alone; here they are taken of all samples.
        questions = [request for request in requests if request.wants != "loss"]
        put = [
            r for r in questions if comparison.asked is None or r.sample.group in comparison.asked
        ]
        scores[name] = _answer(loaded.asked, task, put, answers, batch_size)
        samples = [request.sample for request in questions]
        losses[name] = _losses(loaded.asked, samples, comparison.routed, batch_size, tally)
    pooled = [
        value for of_task in losses.values() for values in of_task.values() for value in values
    ]
    return {
        "scope": loaded.scope,
        "loss": fmean(pooled),
        "loss_samples": len(pooled),
        "losses": {
            name: {group: fmean(values) for group, values in of_task.items()}
            for name, of_task in losses.items()
        },
        "scores": scores,
        "routing": _routing(model, tally),
    }


def load_causal(checkpoint: Path, dtype: str, device: torch.device) -> Loaded:
    """The checkpoint; its language model chooses by token where it was trained to look ahead."""
    model, processor = load(checkpoint, dtype=dtype)
    scope = None
    if any(layer.router.sees_future for layer in model.moe_layers().get(LANGUAGE, ())):
        scope = "token"
        routing = RoutingChange(router_options={"scope": scope}, parts=(LANGUAGE,))
        model, processor = load(checkpoint, dtype=dtype, routing=routing)
    return Loaded(LlavaCompete(model.to(device).eval(), processor), scope)


def _answer(
    asked: LlavaCompete, task: Task, requests: list[Request], answers: Path, batch_size: int
) -> dict[str, float]:
    """The task's headline by group, or of the whole where there are no groups."""
    if not requests:
        return {}
    predict(asked, task, requests, answers, batch_size=batch_size)
    rows = score_samples(task, requests, read_predictions(answers, task.name))
    results = task_results(task, rows, missing=0, limited=True)
    headline = results["conditions"][RIGHT]["metrics"][task.headline]
    groups = headline["groups"] or {requests[0].sample.group: headline}
    return {f"{task.headline} {group}".strip(): value["value"] for group, value in groups.items()}


def _losses(
    asked: LlavaCompete,
    samples: list[Sample],
    routed: int,
    batch_size: int,
    tally: RoutingTally,
) -> dict[str, list[float]]:
    """Loss of each sample's reference, nats a token, by group; ``routed`` of them are watched."""
    order = random.Random(0).sample(samples, len(samples))
    found: dict[str, list[float]] = {}

    def ask(some: list[Sample]) -> None:
        for begin in range(0, len(some), batch_size):
            batch = some[begin : begin + batch_size]
            for sample, loss in zip(batch, asked.answer_losses(batch), strict=True):
                found.setdefault(sample.group, []).append(loss)

    with watching(asked.model, tally):
        ask(order[:routed])
    ask(order[routed:])
    return dict(sorted(found.items()))


def _routing(model: Model, tally: RoutingTally) -> dict[str, dict[str, float | None]]:
    """Each figure's mean over the layers of a part, of all kinds of token; None: none has it."""
    return {
        part: {
            name: _mean(layer["kinds"]["all"][name] for layer in found["layers"] if layer["kinds"])
            for name in FIGURES
        }
        for part, found in part_figures(model, tally).items()
    }


def _mean(values: Iterable[Any]) -> float | None:
    found = [value for value in values if value == value]  # NaN is not itself
    return fmean(found) if found else None
