"""transformers' Trainer with named losses, learning rates by part and what experts need."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer
from transformers.trainer_utils import TrainOutput

from llava_compete.data.batches import Order
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.training.args import TrainArgs
from llava_compete.training.callbacks import (
    CompetitionCallback,
    QuietProgress,
    RouterStateCallback,
    StepTimer,
)
from llava_compete.training.finite import FiniteGuard
from llava_compete.training.loader import make_loader
from llava_compete.training.parts import check_parts, part_names
from llava_compete.training.preemption import Preemption
from llava_compete.training.progress import Progress
from llava_compete.training.saving import FINAL, PARTIAL, CheckpointWriter
from llava_compete.training.skipped import SkippedRows
from llava_compete.training.trial import TrialSave
from llava_compete.training.universal import is_moved, load_states
from llava_compete.training.wandb_account import use_wandb_offline_without_account


class LlavaTrainer(Trainer):
    """Trainer that logs each loss by name and gives each part its learning rate."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        model: Model,
        args: TrainArgs,
        max_skipped_share: float | None = None,  # of rows; None: the dataset skips none
        recipe: Mapping[str, Any] | None = None,  # for the manifests of checkpoints
        settings: Mapping[str, Any] | None = None,  # likewise: what a resume must not change
        order: Order | None = None,  # of the rows, as it was at the run's beginning
        **kwargs: Any,
    ) -> None:
        if "wandb" in args.report_to:
            use_wandb_offline_without_account()
        super().__init__(model=model, args=args, **kwargs)
        self.writer = CheckpointWriter(args, recipe or {}, settings or {})
        self._order = order
        self._seen: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
        self._finite = FiniteGuard(self)
        self.preemption = Preemption(args)
        self.add_callback(self.preemption)  # before those that look at what a step's end asks for
        self._timer = StepTimer()
        self.add_callback(self._timer)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress)
        if model.competitors():
            self.add_callback(CompetitionCallback(model))
        if model.moe_layers():
            self.add_callback(RouterStateCallback(model, self._finite))
        self._skipped: SkippedRows | None = None
        if max_skipped_share is not None:
            self._skipped = SkippedRows(self, max_skipped_share)
            self.add_callback(self._skipped)
        if args.routing_steps:
            from llava_compete.routing.callback import RoutingCallback  # brings matplotlib

            self.add_callback(RoutingCallback(self))
        self.add_callback(self._finite)  # the last: by then the others have asked to save or stop
        self._num_parameters = _count_without_embeddings(model)
        self._progress = Progress(self)
        self.add_callback(self._progress)  # behind those that begin anew with a training
        self.add_callback(TrialSave(self))

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        self._progress.checkpoint = resume_from_checkpoint and Path(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

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
            order=self._order,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self.parameter_groups(), **kwargs)
        return self.optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's: trained parameters that have a learning rate and a decay in common."""
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
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from the last step's checkpoint, in the middle of an epoch
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
        if self.model.training:
            given = {**inputs, "num_items_in_batch": num_items_in_batch}
            loss = self._finite.watch(given, loss, outputs.terms)
        # Tensors, not numbers: .item() here would wait for the device in every micro-batch.
        self.note({**outputs.losses, **outputs.metrics})
        mask_BL = inputs["attention_mask"]
        self.note({"data/filled": mask_BL.float().mean()}, weight=mask_BL.numel())
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._finite.see_norm(norm)
        return norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers' 6 * ids * parameters, where ZeRO-3's shards count as the whole, too."""
        return 6 * inputs["input_ids"].numel() * self._num_parameters

    def note(self, values: Mapping[str, Tensor], weight: int = 1) -> None:
        """Scalars for the next log: their weighted mean over ranks, with the same names on each."""
        for name, value in values.items():
            self._seen[name].append((value.to(self.args.device), weight))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model with its processor, whole or not at all."""
        final = Path(output_dir or self.args.output_dir)
        folder = final if _internal_call else self.writer.output_dir / PARTIAL / FINAL
        super().save_model(str(folder), _internal_call)
        if self.args.should_save:  # recipe.yaml says it better than a pickle does
            (folder / "training_args.bin").unlink(missing_ok=True)
        if not _internal_call:
            self.writer.finish(final)

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers puts a checkpoint."""
        return str(self.writer.folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not is_moved(self.args, resume_from_checkpoint):  # else load_states reads the weights
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> Any:
        moved = is_moved(self.args, resume_from_checkpoint)
        native = None if moved else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, native)
        if moved:
            load_states(self, Path(str(resume_from_checkpoint)))
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.writer.save(self.state.global_step, self.write_checkpoint)

    def write_checkpoint(self, folder: Path) -> None:
        """All that a resume needs, on every rank, to ``folder``, which lies in writer.folder."""
        super()._save_checkpoint(self.model_wrapped, None)
        self._progress.write(folder)

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
        self._finite.correct(logs)
        if self._skipped is not None:
            logs["data/skipped"] = self._skipped.total.skipped
        if "train_loss" in logs:  # transformers: of the steps since the resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


def _count_without_embeddings(model: nn.Module) -> int:
    embeddings = {
        f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Embedding
    }
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for name, parameter in model.named_parameters()
        if name not in embeddings
    )


def _sum_and_weight(noted: list[tuple[Tensor, int]]) -> Tensor:
    """Weighted sum and weight of the finite ones: a part without a token says NaN."""
    values = torch.stack([value.float() for value, _ in noted])
    weights = torch.tensor([float(weight) for _, weight in noted], device=values.device)
    finite = values.isfinite()
    return torch.stack([(values.where(finite, 0.0) * weights).sum(), (weights * finite).sum()])
