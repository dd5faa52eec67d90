"""Is there room on the disk for what a training will save?"""

import math
import shutil
from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from transformers.trainer_utils import SaveStrategy

from llava_compete.quantized import QuantizedLinear
from llava_compete.training.saving import whole_checkpoints, zero_stage

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

MOMENTS = 8  # bytes a trained number: Adam's two in float32; no optimizer here has more
MASTER = 4  # ZeRO's float32 copy


class Sizes(NamedTuple):
    """Bytes on the disk, without tokenizer and JSON files."""

    model: int
    checkpoint: int


def saved_sizes(model: nn.Module, stage: int) -> Sizes:
    """Of a model and of its training checkpoint under ZeRO ``stage``, 0 without DeepSpeed.

    Under ZeRO-1 and 2 DeepSpeed writes the weights once more, under ZeRO-3 the frozen ones alone.
    """
    weights = frozen = trained = 0
    for parameter in model.parameters():
        numel = getattr(parameter, "ds_numel", parameter.numel())
        weights += numel * parameter.element_size()
        if parameter.requires_grad:
            trained += numel
        else:
            frozen += numel * parameter.element_size()
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            kept = (module.packed, module.magnitude_bits)
            weights += module.restored_bytes() - sum(p.nbytes for p in kept)
    again = {0: 0, 3: frozen}.get(stage, weights)
    states = trained * (MOMENTS + (MASTER if stage else 0))
    return Sizes(weights, weights + again + states)


def check_space(trainer: "LlavaTrainer") -> None:
    """ValueError where the disk of output_dir has no room for all that the run will keep there.

    While a checkpoint is written those that ``save_total_limit`` keeps are still there.
    """
    args = trainer.args
    sizes = saved_sizes(trainer.model, zero_stage(args))
    total = sizes.checkpoint
    if args.save_only_model:
        total = sizes.model
    count = _checkpoints_to_come(trainer)
    needed = count * total + sizes.model
    trainer.writer.output_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(trainer.writer.output_dir).free
    if needed <= free:
        return
    limit = args.save_total_limit
    kept = f"save_total_limit={limit} and the one being written" if limit else "all are kept"
    raise ValueError(
        f"{args.output_dir} has {_gib(free)} free and needs {_gib(needed)}: {count} checkpoints of "
        f"{_gib(total)} ({kept}) and the trained model, {_gib(sizes.model)}. Free space, lower "
        f"save_total_limit, save less often, or name another output_dir"
    )


def _checkpoints_to_come(trainer: "LlavaTrainer") -> int:
    """How many more than are there lie on the disk at once."""
    args, state = trainer.args, trainer.state
    left = state.max_steps - state.global_step
    if args.save_strategy == SaveStrategy.NO:
        return 0
    if args.save_strategy == SaveStrategy.EPOCH:
        per_epoch = math.ceil(state.max_steps / max(state.num_train_epochs, 1))
        saves = math.ceil(left / per_epoch)
    else:
        saves = math.ceil(left / state.save_steps)
    if not args.save_total_limit or args.save_total_limit < 0:
        return saves
    there = len(whole_checkpoints(trainer.writer.output_dir))
    return min(saves, max(1, args.save_total_limit + 1 - there))


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
