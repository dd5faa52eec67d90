"""Train a checkpoint by a recipe.

llava-compete train scripts/recipes/stage3_finetune.yaml --learning_rate 4e-6
deepspeed --no_local_rank --module llava_compete train RECIPE
torchrun --nproc-per-node 8 -m llava_compete train RECIPE
"""

import json
import os
import socket
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
import yaml
from transformers import LlavaProcessor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.logging import disable_progress_bar

from llava_compete.checkpoint import load
from llava_compete.config import DataArgs, ModelArgs, parse, read_recipe, resolved
from llava_compete.data import Collator, LlavaDataset, counts_table, data_record
from llava_compete.lora import LoraSettings, add_lora
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import RoutingChange
from llava_compete.packed_attention import PACKED_SDPA
from llava_compete.quantized import quantize_frozen
from llava_compete.tower import open_features
from llava_compete.training.args import TrainArgs
from llava_compete.training.callbacks import build_schedule
from llava_compete.training.manifest import Manifest, read_manifest
from llava_compete.training.order import kept_accumulation, order_settings, run_order
from llava_compete.training.output import DATA, RECIPE, agreed, find_resume, refuse_results
from llava_compete.training.parts import check_parts, set_trainable, tune_experts
from llava_compete.training.saving import clean_up
from llava_compete.training.settings import check_settings, run_settings
from llava_compete.training.trainer import LlavaTrainer
from llava_compete.training.watchdog import Watchdog


class Recipe(NamedTuple):
    """What a run was asked for."""

    argv: list[str]  # the recipe's file and the flags behind it
    model: ModelArgs
    data: DataArgs
    training: TrainArgs

    @property
    def parts(self) -> tuple[ModelArgs, DataArgs, TrainArgs]:
        """The dataclasses that its keys are fields of."""
        return self.model, self.data, self.training


class Beginning(NamedTuple):
    """Where a run begins: anew, or from a checkpoint."""

    checkpoint: str | None
    before: Manifest | None  # of that checkpoint


def prepare(argv: Sequence[str]) -> tuple[LlavaTrainer, str | None]:
    """The trainer and the checkpoint to resume from; ValueError for whatever is wrong by then."""
    recipe = _read(argv)
    checkpoint, before = _find_beginning(recipe.training)
    if before is not None:
        recipe = _with_kept_rows(recipe, before)
    if checkpoint is None and not recipe.training.dry_run:
        output_dir = Path(recipe.training.output_dir)
        refuse_results(output_dir, keep_own=recipe.training.resume == "auto")
    model, processor = _open_model(recipe.model, recipe.training)
    dataset = _open_dataset(recipe, model, processor)
    record = check_data(dataset, recipe.data) if recipe.training.process_index == 0 else None
    order = run_order(recipe.training, before)
    settings = run_settings(recipe.parts, recipe.training, dataset, model.config)
    settings |= order_settings(recipe.training, before, order)
    if before is not None:
        check_settings(before.settings, settings, str(checkpoint))
    given = resolved(recipe.argv, recipe.parts)
    skips = recipe.data.broken_images == "skip"
    trainer = LlavaTrainer(
        model=model,
        args=recipe.training,
        recipe=given,
        settings=settings,
        order=order,
        train_dataset=dataset,
        data_collator=Collator(processor),
        processing_class=processor,
        max_skipped_share=recipe.data.max_skipped_share if skips else None,
    )
    if record is not None and not recipe.training.dry_run:
        output_dir = Path(recipe.training.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / RECIPE).write_text(yaml.safe_dump(given, sort_keys=False))
        (output_dir / DATA).write_text(json.dumps(record, indent=1))
    return trainer, checkpoint


def _read(argv: Sequence[str]) -> Recipe:
    """The recipe with its flags; the process knows its rank then."""
    if argv and not argv[0].startswith("-") and wants_deepspeed(argv):
        _be_a_world_of_one()
    recipe = _parse(argv)
    args = recipe.training
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs but one process: launch by scripts/train.sh, or choose one GPU by "
            f"CUDA_VISIBLE_DEVICES"
        )
    if args.process_index:
        disable_progress_bar()  # one rank's bars are enough
    return recipe


def _parse(argv: Sequence[str]) -> Recipe:
    parts = parse((ModelArgs, DataArgs, TrainArgs), argv, prog="llava-compete train")
    return Recipe(list(argv), *parts)


def _find_beginning(args: TrainArgs) -> Beginning:
    """As rank 0 finds it; what an earlier start was writing is tidied up before."""
    output_dir = Path(args.output_dir)
    if args.process_index == 0 and args.resume != "never" and not args.dry_run:
        clean_up(output_dir)
    checkpoint = agreed(args, lambda: find_resume(args.resume, output_dir))
    return Beginning(checkpoint, read_manifest(Path(checkpoint)) if checkpoint else None)


def _with_kept_rows(recipe: Recipe, before: Manifest) -> Recipe:
    """The recipe with as many micro-batches as keep the rows of the checkpoint's steps."""
    steps = kept_accumulation(recipe.training, before)
    if steps == recipe.training.gradient_accumulation_steps:
        return recipe
    return _parse([*recipe.argv, f"--gradient_accumulation_steps={steps}"])


def _open_model(model_args: Any, args: Any) -> tuple[Model, LlavaProcessor]:
    """The checkpoint's model, as a recipe's ModelArgs and TrainArgs have it, with its processor."""
    if args.deepspeed:
        # ZeRO-3 shards while the model is built and has to know the ranks by then.
        deepspeed.init_distributed()
    # DeepSpeed trains on parameters of the recipe's dtype and keeps float32 copies itself; without
    # it the parameters are float32 and autocast does the rest.
    dtype = torch.bfloat16 if args.bf16 and args.deepspeed else torch.float32
    model, processor = load(
        model_args.checkpoint,
        dtype=dtype,
        routing=routing_change(model_args),
        attn_implementation=_attention(model_args.attn_implementation, args.batching),
    )
    if model_args.lora is not None:
        add_lora(model, LoraSettings.of(model_args.lora), args.seed)
    if model.config.lora is not None and model.config.lora["quantize"] is not None:
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "lora: quantize does not go with ZeRO-3, which shards weights itself: use ZeRO-2"
            )
        quantize_frozen(model, args.device)
    set_trainable(model, model_args.trainable)
    tune_experts(model, args)
    check_parts(args.part_learning_rates or {}, "part_learning_rates", model)
    if model.competitors():
        build_schedule(model, args, max(args.max_steps, 0))  # an impossible rate is refused here
    return model, processor


def routing_change(args: Any) -> RoutingChange:
    """The routing that a recipe's ModelArgs ask for."""
    return RoutingChange(
        router=args.router,
        router_options=args.router_options,
        loss_weights=args.loss_weights,
        top_k=args.top_k,
        seed=args.router_seed,
        parts=args.router_parts and tuple(args.router_parts),
        fresh=args.fresh_routers,
    )


def _attention(name: str, batching: str) -> str:
    """sdpa's mask would cost the square of a packed sequence; by row it costs that of each row."""
    return PACKED_SDPA if name == "sdpa" and batching == "packed" else name


def _open_dataset(recipe: Recipe, model: Model, processor: LlavaProcessor) -> LlavaDataset:
    """The rows, measured by each machine's first process while its others wait."""
    args, features = recipe.data, None
    if args.features:
        features = open_features(Path(args.features), model, Path(recipe.model.checkpoint))
    with recipe.training.main_process_first(local=True, desc="measuring rows"):
        return LlavaDataset(
            Path(args.data_path),
            Path(args.image_folder),
            processor,
            args.max_length,
            linked_folders=tuple(map(Path, args.linked_folders)),
            exclude=Path(args.exclude) if args.exclude else None,
            broken_images=args.broken_images,
            features=features,
        )


def check_data(dataset: LlavaDataset, args: DataArgs) -> dict[str, Any]:
    """Print what is trained on, by source, and return it for data.json.

    ValueError for an image that is not there, or, with ``broken_images=skip``, for more rows
    without one than ``max_skipped_share`` of all.
    """
    missing = dataset.check()
    record = data_record(dataset, missing, Path(args.exclude) if args.exclude else None)
    print(counts_table(record))
    if missing.total() > args.max_skipped_share * len(dataset):
        raise ValueError(
            f"{missing.total()} of {len(dataset)} rows of {dataset.file} have an image that is not "
            f"in {dataset.images.root}, which is more than max_skipped_share="
            f"{args.max_skipped_share}: fetch the images, exclude the rows (`python -m data_prep "
            f"check --drop`) or allow more"
        )
    return record


def run(trainer: LlavaTrainer, resume_from: str | None) -> None:
    """Train, save the model with its processor, and leave trainer_state and train_results."""
    with Watchdog(trainer, trainer.args.step_timeout):
        with trainer.preemption:
            result = trainer.train(resume_from_checkpoint=resume_from)
        trainer.preemption.leave()
        trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)


def wants_deepspeed(argv: Sequence[str]) -> bool:
    """Does the recipe, or a flag behind it, name a DeepSpeed configuration?"""
    return bool(deepspeed_config(argv))


def deepspeed_config(argv: Sequence[str]) -> str | None:
    """The DeepSpeed configuration that the recipe, or a flag behind it, names."""
    value = read_recipe(Path(argv[0])).get("deepspeed")
    for word, following in pairwise([*argv[1:], ""]):
        if word == "--deepspeed":
            value = following
        elif word.startswith("--deepspeed="):
            value = word.partition("=")[2]
    return value


def _be_a_world_of_one() -> None:
    """Without a launcher DeepSpeed would look for MPI: say that this process is alone."""
    if "RANK" in os.environ:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
