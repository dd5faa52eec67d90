"""What a training step costs under each router: time, memory, parameters.

All routers stand in turn on the same experts of one model, in one process, and take the same
batches: what another program does to the machine meanwhile meets them all. A step here is a
micro-batch's forward and backward; the optimizer's share is the same for all and left out.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from eval.store import Record
from experiments.compare.settings import REFERENCE, Comparison
from experiments.compare.swap import RouterSet, build, install, watch_token_ids
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.training.callbacks import build_schedule
from llava_compete.training.dry_run import num_steps
from llava_compete.training.prepare import prepare, wants_deepspeed
from llava_compete.training.trainer import LlavaTrainer

SPAN = 1000  # steps of a made-up training, for routers that change with the step


def measure(comparison: Comparison, rounds: int, say: Callable[[str], None]) -> Record:
    """Of each router: seconds by round, bytes of a step, parameters."""
    recipe = comparison.args().model
    trainer = _trainer(comparison)
    bench = Bench(trainer)
    sets = {
        name: build(bench.model, comparison.change(name, recipe)) for name in comparison.routers
    }
    watch_token_ids(bench.model, sets)
    # The loader moves them to the device.
    first, *batches = islice(iter(trainer.get_train_dataloader()), rounds + 1)
    if len(batches) < rounds:
        raise ValueError(f"timing_rounds={rounds}: the data has {len(batches) + 1} batches only")
    memory = {name: bench.step_bytes(chosen, first) for name, chosen in sets.items()}
    share = _competing_share(trainer)
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    reference: list[float] = []
    for number, batch in enumerate(batches):
        say(f"timing round {number + 1} of {rounds}")
        step = int(SPAN * (number + 0.5) / rounds)
        found = _round(bench, sets, number, batch, step, share)
        reference.append(median(found[REFERENCE]))
        for name, of_name in found.items():
            seconds[name].append(of_name[-1])
    return {
        "device": str(bench.device),
        "threads": torch.get_num_threads(),
        "batch_size": trainer.args.per_device_train_batch_size,
        "competing_share": share,
        "reference_seconds": reference,
        "routers": {
            name: {
                "seconds": seconds[name],
                "ratios": [a / b for a, b in zip(seconds[name], reference, strict=True)],
                "step_bytes": memory[name],
                "parameters": chosen.number_of_parameters(),
            }
            for name, chosen in sets.items()
        },
    }


def _round(
    bench: "Bench",
    sets: Mapping[str, RouterSet],
    number: int,
    batch: Mapping[str, Any],
    step: int,
    share: float,
) -> dict[str, list[float]]:
    """Seconds of each router; of the reference several, because all others are held against it.

    The reference stands at both ends, in the middle, and in its own place, whose time comes last
    and is the one that its own ratio is made of: that tells how far equal steps differ.
    """
    names = _rotated(list(sets), number)
    bench.mean_seconds(sets[names[0]], batch, step, share)  # the first of a batch is slower
    found: dict[str, list[float]] = {name: [] for name in names}
    half = len(names) // 2
    for name in (REFERENCE, *names[:half], REFERENCE, *names[half:], REFERENCE):
        found[name].append(bench.mean_seconds(sets[name], batch, step, share))
    own = 2 if names.index(REFERENCE) >= half else 1
    found[REFERENCE].append(found[REFERENCE].pop(own))
    return found


class Bench:
    """The model of a recipe, as it stands in training, and single steps of it."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.args = trainer.args
        self.device = trainer.args.device
        self.on_gpu = self.device.type == "cuda"
        self.model: Model = trainer.model.to(self.device).train()
        if self.args.activation_checkpointing:
            self.model.activation_checkpointing_enable(self.args.activation_checkpointing_kwargs)

    def step_bytes(self, chosen: RouterSet, batch: Mapping[str, Any]) -> int:
        """Memory of the run's largest step, in which as many layers compete as may.

        On a GPU the peak of forward and backward above what stood before; elsewhere what autograd
        keeps for the backward.
        """
        install(self.model, chosen)
        competing = min(self.args.competition_max_layers, len(self.model.competitors()))
        if self.on_gpu:
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        with keeping(self.model) as kept:
            loss = self._forward(chosen, batch, 0, competing)
        found = sum(kept.values())
        self._backward(chosen, loss)
        if self.on_gpu:
            found = torch.cuda.max_memory_allocated(self.device) - before
        self.model.zero_grad(set_to_none=True)
        return found

    def mean_seconds(
        self, chosen: RouterSet, batch: Mapping[str, Any], step: int, share: float
    ) -> float:
        """Of a step in which each layer competes with probability ``share``.

        What a competition costs does not depend on the other layers, so the mean is (1 - share)
        times a step in which none competes and ``share`` times one in which all do.
        """
        install(self.model, chosen)
        plain = self._seconds(chosen, batch, step, competing=0)
        layers = len(self.model.competitors())
        if not layers or not share:
            return plain
        return (1 - share) * plain + share * self._seconds(chosen, batch, step, competing=layers)

    def _seconds(
        self, chosen: RouterSet, batch: Mapping[str, Any], step: int, competing: int
    ) -> float:
        self._wait()
        begun = time.perf_counter()
        self._backward(chosen, self._forward(chosen, batch, step, competing))
        self._wait()
        seconds = time.perf_counter() - begun
        self.model.zero_grad(set_to_none=True)
        return seconds

    def _forward(
        self, chosen: RouterSet, batch: Mapping[str, Any], step: int, competing: int
    ) -> Tensor:
        for router in chosen.all():
            router.begin_step(step, SPAN)
        layers = len(self.model.competitors())
        self.model.set_competing([index < competing for index in range(layers)])
        mixed = self.args.bf16 and self.model.dtype == torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            loss: Tensor = self.model(**batch).loss
        return loss

    def _backward(self, chosen: RouterSet, loss: Tensor) -> None:
        loss.backward()
        for router in chosen.all():
            router.end_step()

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@contextmanager
def keeping(model: nn.Module) -> Iterator[dict[int, int]]:
    """Sizes in bytes, by address, of what autograd keeps inside; parameters are not counted.

    Storages are counted once however many tensors are views of them.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph, in a cycle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _trainer(comparison: Comparison) -> LlavaTrainer:
    """The recipe's without DeepSpeed, parameters in the dtype that they would have under it."""
    trainer, _ = prepare([*comparison.recipe, "--deepspeed", "", "--dry_run", "true"])
    if wants_deepspeed(comparison.recipe) and trainer.args.bf16:
        trainer.model.to(torch.bfloat16)
    return trainer


def _competing_share(trainer: LlavaTrainer) -> float:
    """Of the steps, those in which a layer of a competing router competes, in the mean."""
    steps = num_steps(trainer)
    warmup = build_schedule(trainer.model, trainer.args, steps).warmup_steps
    return trainer.args.competition_rate * max(0, steps - warmup) / steps


def _rotated(names: list[str], by: int) -> list[str]:
    """Another one begins in each round."""
    by %= len(names)
    return names[by:] + names[:by]
