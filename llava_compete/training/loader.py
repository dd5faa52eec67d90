"""The loader of a training: a rank's batches, read by workers, on the rank's device."""

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from llava_compete.data import LlavaDataset
from llava_compete.data.batches import BATCHINGS, Batches, Order
from llava_compete.names import nearest
from llava_compete.training.preemption import heed_the_rank_alone


def check_order(args: TrainingArguments, batching: str) -> None:
    """ValueError for what the batches would not heed, or where two keys order the rows."""
    if batching not in BATCHINGS:
        raise ValueError(f"batching={batching!r} is not known{nearest(batching, BATCHINGS)}")
    strategy = args.train_sampling_strategy
    if strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy={strategy} would open every row to measure it: give "
            f"batching=length_grouped or packed, which know the lengths"
        )
    if strategy == "sequential" and batching != "shuffled":
        raise ValueError(
            f"train_sampling_strategy=sequential orders the rows, and so does "
            f"batching={batching}: give one of them"
        )
    if args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last=true: every row is drawn once an epoch, leave it out"
        )
    if args.ignore_data_skip:
        raise ValueError(
            "ignore_data_skip=true: a resumed run would draw other rows than the undisturbed one, "
            "leave it out"
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=true: a step would have other rows than the recipe says, and a "
            "resumed run others again; `llava-compete plan` says which batch size fits"
        )
    ways = args.accelerator_config
    if ways.split_batches or ways.dispatch_batches or not ways.even_batches:
        raise ValueError(
            f"accelerator_config splits, dispatches or leaves uneven the batches ({ways}): each "
            f"rank makes its own, leave it out"
        )


def make_loader(
    dataset: LlavaDataset,
    collate: Callable[..., Any],
    args: TrainingArguments,
    accelerator: Accelerator,
    *,
    batching: str,
    batch_size: int,
    order: Order | None = None,
) -> DataLoader:
    """The batches of this rank, with the loader options of TrainingArguments.

    ``order`` is that of the run's beginning where it had other ranks.

    Its ``set_epoch`` reaches the Batches, and so does that of transformers' Trainer through the
    SkipBatchSampler of a resumed epoch.
    """
    batches = Batches(
        dataset.lengths,
        batching=batching,
        batch_size=batch_size,
        max_length=dataset.max_length,
        seed=args.seed if args.data_seed is None else args.data_seed,
        rank=args.process_index,
        world_size=args.world_size,
        order=order,
    )
    workers = args.dataloader_num_workers
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(_start_worker, num_workers=workers, rank=args.process_index),
    )
    # The batches are this rank's already; as one of several, accelerate would deal them again.
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
    )


def _start_worker(worker: int, num_workers: int, rank: int) -> None:
    heed_the_rank_alone()
    seed_worker(worker, num_workers, rank)
