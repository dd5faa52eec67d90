"""Messages and pictures -> ids and labels; the only place that makes labels.

N images, H and W pixels, L sequence with image placeholders.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from llava_compete.processor import Message, count_images, with_images

IGNORED = -100  # the label of a position that is not answered


def encode(
    processor: LlavaProcessor,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """One conversation as ``input_ids`` and ``labels`` int64 (L,), ``pixel_values`` (N, 3, H, W).

    Labels are the ids inside the template's generation blocks, everything else is IGNORED. A
    conversation longer than ``max_length`` loses whole turns from its end, and a first turn that
    is still too long the end of its answer. ValueError where that would cut an image or leave no
    answer at all.
    """
    kept = list(messages)
    while True:
        encoded = _encode_whole(processor, kept, images)
        length = encoded["input_ids"].numel()
        if max_length is None or length <= max_length:
            return encoded
        if sum(message["role"] == "user" for message in kept) == 1:
            is_image = encoded["input_ids"] == processor.image_token_id
            answered = encoded["labels"][:max_length] != IGNORED
            if answered.any() and not is_image[max_length:].any():
                shorter = {name: encoded[name][:max_length] for name in ("input_ids", "labels")}
                return {**encoded, **shorter}
            placeholders = int(is_image.sum())
            raise ValueError(
                f"the first turn needs {length} tokens, {placeholders} of them image tokens, but "
                f"max_length={max_length} would cut an image or leave no answer: raise max_length "
                f"or drop the sample"
            )
        kept = kept[:-2]
        images = images[: count_images(kept)]


def _encode_whole(
    processor: LlavaProcessor, messages: Sequence[Message], images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    rendered = processor.apply_chat_template(
        [with_images(messages, images)],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )
    input_ids = torch.tensor(rendered["input_ids"][0])
    answered = torch.tensor(rendered["assistant_masks"][0], dtype=torch.bool)
    encoded = {"input_ids": input_ids, "labels": input_ids.masked_fill(~answered, IGNORED)}
    if images:
        encoded["pixel_values"] = torch.stack(
            [torch.as_tensor(p) for p in rendered["pixel_values"]]
        )
    return encoded
