"""What a recipe would do: one sample, one batch, the parameters and the schedule."""

import math
import re

import torch
from transformers import LlavaProcessor

from llava_compete.data import IGNORED
from llava_compete.processor import IMAGE_TOKEN
from llava_compete.training.callbacks import build_schedule
from llava_compete.training.parts import count_trainable
from llava_compete.training.trainer import LlavaTrainer


def describe(trainer: LlavaTrainer) -> str:
    """What a dry run shows: one sample, one batch, the parameters and the schedule."""
    processor, dataset, args = trainer.processing_class, trainer.train_dataset, trainer.args
    sample = dataset[0]
    loader = trainer.get_train_dataloader()
    batch = next(iter(loader))
    lines = [
        f"{len(dataset)} rows; sample {dataset.row(0).get('id')}, answer tokens in [[ ]]:",
        _marked(processor, sample["input_ids"], sample["labels"]),
        "",
        f"{args.batching}: {len(loader)} batches an epoch and process; the first:",
        *(
            f"  {name:15} {tuple(value.shape)} {value.dtype}"
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        ),
        f"  {int((batch['labels'] != IGNORED).sum())} answer tokens, "
        f"{int(batch['attention_mask'].sum())} of {batch['input_ids'].numel()} positions filled",
        "",
        f"{'part':32} {'trainable':>14} {'all':>14}",
        *(f"{part:32} {t:14,} {n:14,}" for part, (t, n) in count_trainable(trainer.model).items()),
    ]
    parts = trainer.model.moe_layers()
    if trainer.model.competitors():
        steps = num_steps(trainer)
        schedule = build_schedule(trainer.model, args, steps)
        competing = [sum(schedule.competing(step)) for step in range(steps)]
        layers = ", ".join(f"{len(found)} in {part}" for part, found in parts.items())
        lines += [
            "",
            f"MoE layers: {layers}; {steps} steps, the first {schedule.warmup_steps} without "
            f"competition, {sum(count > 0 for count in competing)} with competing layers "
            f"(at most {max(competing)} at once)",
        ]
    return "\n".join(lines)


def num_steps(trainer: LlavaTrainer) -> int:
    """Optimizer steps of the training."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    batches = len(trainer.get_train_dataloader())
    per_epoch = math.ceil(batches / trainer.args.gradient_accumulation_steps)
    return math.ceil(per_epoch * trainer.args.num_train_epochs)


def _marked(processor: LlavaProcessor, ids_L: torch.Tensor, labels_L: torch.Tensor) -> str:
    pieces: list[str] = []
    answering = False
    for token, label in zip(ids_L.tolist(), labels_L.tolist(), strict=True):
        if (label != IGNORED) != answering:
            pieces.append("]]" if answering else "[[")
            answering = not answering
        pieces.append(processor.tokenizer.decode([token]))
    pieces.append("]]" if answering else "")
    image_run = re.compile(f"(?:{re.escape(IMAGE_TOKEN)})+")
    return image_run.sub(
        lambda match: f"{IMAGE_TOKEN} x {len(match[0]) // len(IMAGE_TOKEN)}", "".join(pieces)
    )
