"""The rows of each optimizer step stay the same where a run goes on with other processes."""

import logging
from typing import Any

from transformers import TrainingArguments

from llava_compete.data.batches import Order
from llava_compete.training.manifest import Manifest

logger = logging.getLogger(__name__)

ORDER = "order"  # its place in a manifest's settings
BEGUN_BY = "begun_by_processes"  # likewise, of the number of processes at the run's beginning


def kept_accumulation(args: TrainingArguments, before: Manifest) -> int:
    """Micro-batches of an optimizer step that keep its rows; ValueError says which numbers can.

    The recipe's own where the processes are as many as ever: then it is the recipe that changes
    the step, and settings.py refuses that.
    """
    rows, begun = before.settings["rows_per_step"], before.settings[BEGUN_BY]
    batch_size, world_size = args.per_device_train_batch_size, args.world_size
    if world_size == before.world_size == begun:
        return args.gradient_accumulation_steps
    steps, rest = divmod(rows, batch_size * world_size)
    if rest:
        sizes = _divisors(rows // world_size) if rows % world_size == 0 else []
        raise ValueError(
            f"an optimizer step of the checkpoint has {rows} rows, which {world_size} processes "
            f"with per_device_train_batch_size={batch_size} cannot share alike: with "
            f"{world_size} processes it can be {sizes or 'nothing'}, with "
            f"per_device_train_batch_size={batch_size} there can be "
            f"{_divisors(rows // batch_size) if rows % batch_size == 0 else 'no number of'} "
            f"processes"
        )
    if steps != args.gradient_accumulation_steps and args.process_index == 0:
        logger.warning(
            "%d processes in place of %d: gradient_accumulation_steps=%d in place of %d keeps the "
            "%d rows of an optimizer step",
            *(world_size, before.world_size, steps, args.gradient_accumulation_steps, rows),
        )
    return steps


def run_order(args: TrainingArguments, before: Manifest | None) -> Order:
    """That of the run's beginning."""
    if before is not None:
        return Order(*before.settings[ORDER])
    return Order.of(args.per_device_train_batch_size, args.world_size)


def order_settings(
    args: TrainingArguments, before: Manifest | None, order: Order
) -> dict[str, Any]:
    """What the manifests of a run say of its beginning, the same in all of them."""
    begun_by = args.world_size if before is None else before.settings[BEGUN_BY]
    return {ORDER: list(order), BEGUN_BY: begun_by}


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
