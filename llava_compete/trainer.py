"""Training on transformers' Trainer, through its public hooks only."""

import logging
import netrc
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llava_compete.loader import check_order, make_loader
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import CompetitionSchedule
from llava_compete.names import nearest
from llava_compete.skipped import SkippedRows

logger = logging.getLogger(__name__)

COARSE_PARTS = ("vision", "projector", "language_model")
FINE_PARTS = {"experts": ".experts.", "routers": ".router."}


@dataclass
class TrainArgs(TrainingArguments):
    """transformers' TrainingArguments and what a mixture of experts adds."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "part_learning_rates",
    ]

    remove_unused_columns: bool = False
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        # Re-entrant checkpointing would leave the routers without gradient.
        default_factory=lambda: {"use_reentrant": False}
    )
    part_learning_rates: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Learning rate by part where it is not learning_rate: vision, "
            "projector, language_model, experts, routers."
        },
    )
    competition_rate: float = field(
        default=0.07, metadata={"help": "Share of steps in which an MoE layer competes."}
    )
    competition_max_layers: int = field(
        default=3, metadata={"help": "Most layers that compete in one step."}
    )
    competition_warmup: float = field(
        default=0.05,
        metadata={"help": "Steps before the first competition; below 1, a share of all steps."},
    )
    batching: str = field(
        default="shuffled",
        metadata={
            "help": "shuffled; length_grouped: rows of near length together; packed: several rows "
            "to a sequence of at most max_length tokens, per_device_train_batch_size counts "
            "sequences."
        },
    )
    routing_steps: int = field(
        default=0,
        metadata={"help": "Every so many steps log the routing figures of that step; 0: never."},
    )
    resume: str = field(
        default="never",
        metadata={
            "help": "never; auto: from the newest complete checkpoint of output_dir, from "
            "the start where there is none; or a checkpoint's path."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Show one sample, batch shapes and parameters, and stop."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, self.batching)


def part_names(parameter: str) -> tuple[str, ...]:
    """The parts a parameter belongs to, the narrowest first."""
    fine = tuple(part for part, mark in FINE_PARTS.items() if mark in parameter)
    # A projector of experts has them directly below it: projector.experts.up_proj.
    return (*fine, parameter.split(".", 1)[0])


def check_parts(parts: Mapping[str, Any] | list[str], key: str, model: Model) -> None:
    """ValueError for a part that does not exist, or experts asked of a dense model."""
    known = (*COARSE_PARTS, *FINE_PARTS)
    for part in parts:
        if part not in known:
            raise ValueError(f"{key}: unknown part {part!r}{nearest(part, known)}")
        if part in FINE_PARTS and not model.moe_layers():
            raise ValueError(
                f"{key}: {part!r} of a dense checkpoint; `llava-compete upcycle` makes experts"
            )


def set_trainable(model: Model, parts: list[str]) -> None:
    """Train the parameters of these parts and no others."""
    check_parts(parts, "trainable", model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in parts for part in part_names(name)))


def count_trainable(model: Model) -> dict[str, tuple[int, int]]:
    """(trainable, all) parameters of each part, experts and routers apart."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = "/".join(reversed(part_names(name)))
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 holds shards
        trained, total = counts.get(part, (0, 0))
        counts[part] = (trained + size * parameter.requires_grad, total + size)
    return counts


def build_schedule(model: Model, args: TrainArgs, max_steps: int) -> CompetitionSchedule:
    """The run's schedule over the model's competitors."""
    warmup = args.competition_warmup
    return CompetitionSchedule(
        len(model.competitors()),
        rate=args.competition_rate,
        max_layers=args.competition_max_layers,
        warmup_steps=int(warmup * max_steps) if warmup < 1 else int(warmup),
        seed=args.seed,
    )


class CompetitionCallback(TrainerCallback):
    """Tells the layers, before each optimizer step, which of them compete in it.

    The decision is a function of the step counter, so all micro-batches of a step share it, and a
    resumed run goes on with the decisions of the undisturbed one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def on_train_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.schedule = build_schedule(self.model, args, state.max_steps)

    def on_step_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.model.set_competing(self.schedule.competing(state.global_step))


class RouterStateCallback(TrainerCallback):
    """Tells every router where an optimizer step begins and ends, for state that moves by step."""

    def __init__(self, model: Model) -> None:
        self.routers = [layer.router for part in model.moe_layers().values() for layer in part]

    def on_step_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for router in self.routers:
            router.begin_step(state.global_step, state.max_steps)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        for router in self.routers:
            router.end_step()


class StepTimer(TrainerCallback):
    """Wall-clock seconds of the optimizer steps since the last log, without saving and logging."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


class QuietProgress(ProgressCallback):
    """A progress bar that shows the losses beside it and prints no line per step."""

    def on_log(
        self,
        args: TrainArgs,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.training_bar is None or not logs or "loss" not in logs:
            return
        shown = {"loss": f"{logs['loss']:.3f}", "lr": f"{logs['learning_rate']:.1e}"}
        if "language_model/agreement" in logs:
            shown["agreement"] = f"{logs['language_model/agreement']:.2f}"
        self.training_bar.set_postfix(shown)


class LlavaTrainer(Trainer):
    """Trainer that logs each loss by name and gives each part its learning rate."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        model: Model,
        args: TrainArgs,
        max_skipped_share: float | None = None,  # of rows; None: the dataset skips none
        **kwargs: Any,
    ) -> None:
        if "wandb" in args.report_to:
            use_wandb_offline_without_account()
        super().__init__(model=model, args=args, **kwargs)
        self._seen: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self._timer = StepTimer()
        self.add_callback(self._timer)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
        if model.competitors():
            self.add_callback(CompetitionCallback(model))
        if model.moe_layers():
            self.add_callback(RouterStateCallback(model))
        self._skipped: SkippedRows | None = None
        if max_skipped_share is not None:
            self._skipped = SkippedRows(self, max_skipped_share)
            self.add_callback(self._skipped)
        if args.routing_steps:
            from llava_compete.routing.callback import RoutingCallback  # brings matplotlib

            self.add_callback(RoutingCallback(self))

    def get_train_dataloader(self) -> DataLoader:
        """The rows as ``batching`` says, with the loader options of TrainingArguments."""
        if self.args.train_sampling_strategy == "sequential":
            return super().get_train_dataloader()
        return make_loader(
            self.train_dataset,
            self.data_collator,
            self.args,
            self.accelerator,
            batching=self.args.batching,
            batch_size=self._train_batch_size,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self._parameter_groups(), **kwargs)
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rates = self.args.part_learning_rates or {}
        check_parts(rates, "part_learning_rates", self.model)
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            given = [rates[part] for part in part_names(name) if part in rates]
            rate = float(given[0]) if given else self.args.learning_rate
            decay = self.args.weight_decay if name in decayed else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._skipped is not None:
            for batch in batches:
                self._skipped.take(batch, self.state.global_step + 1)
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        # Tensors, not numbers: .item() here would wait for the device in every micro-batch.
        self.note({**outputs.losses, **outputs.metrics})
        mask_BL = inputs["attention_mask"]
        self.note({"data/filled": mask_BL.float().mean()}, weight=mask_BL.numel())
        return (loss, outputs) if return_outputs else loss

    def note(self, values: Mapping[str, Tensor], weight: int = 1) -> None:
        """Scalars for the next log: their weighted mean over ranks, with the same names on each."""
        for name, value in values.items():
            self._seen[name].append((value.to(self.args.device), weight))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:  # recipe.yaml says it better than a pickle does
            (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every named loss over micro-batches, ranks and steps since last time.

        Competing layers are the same on every rank, and so are the names.
        """
        if self._seen:
            names = sorted(self._seen)
            sums = torch.stack([_sum_and_weight(self._seen[name]) for name in names])
            sums = self.accelerator.reduce(sums, reduction="sum")
            for name, (total, weight) in zip(names, sums.tolist(), strict=True):
                if weight:
                    logs[name] = total / weight
            self._seen.clear()
        if self._timer.seconds:
            logs["step_seconds"] = sum(self._timer.seconds) / len(self._timer.seconds)
            self._timer.seconds.clear()
        if self._skipped is not None:
            logs["data/skipped"] = self._skipped.total.skipped
        super().log(logs, start_time)


def _sum_and_weight(noted: list[tuple[Tensor, int]]) -> Tensor:
    """Weighted sum and weight of those that are not NaN: a part without a token says NaN."""
    values = torch.stack([value.float() for value, _ in noted])
    weights = torch.tensor([float(weight) for _, weight in noted], device=values.device)
    return torch.stack([(values * weights).nansum(), (weights * ~values.isnan()).sum()])


def use_wandb_offline_without_account() -> None:
    """Never a prompt, never a failure: without credentials wandb writes its run to disk."""
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        known = file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError) as error:
        logger.warning("%s cannot be read (%s): wandb writes its run to disk", file, error)
        known = False
    if not known:
        os.environ["WANDB_MODE"] = "offline"
