"""Messages and pictures -> ids and labels; the only place that makes labels.

N images, H and W pixels, L sequence with image placeholders.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from llava_compete.processor import Message, count_images

IGNORED = -100  # the label of a position that is not answered


class TooLongError(ValueError):
    """A conversation that ``max_length`` leaves no answer of, or only part of an image."""


class Tokens(NamedTuple):
    """A conversation cut to a length."""

    input_ids: Tensor  # int64 (L,)
    labels: Tensor  # int64 (L,), IGNORED where nothing is answered
    num_images: int  # pictures that are left, the first ones
    full_length: int  # before the cut
    exchanges_dropped: int  # pairs of question and answer
    answer_cut: bool  # did the only answer left lose its end?


class Measure(NamedTuple):
    """What ``encode`` will make of a conversation."""

    length: int
    full_length: int  # before it was cut to max_length
    exchanges_dropped: int  # pairs of question and answer
    answer_cut: bool  # did the only answer left lose its end?


def encode(
    processor: LlavaProcessor,
    messages: Sequence[Message],
    images: Sequence[Image.Image],
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """One conversation as ``input_ids`` and ``labels`` int64 (L,), ``pixel_values`` (N, 3, H, W).

    ``tokenise`` says how it is cut; ValueError also for another number of pictures than asked for.
    """
    if (wanted := count_images(messages)) != len(images):
        raise ValueError(f"{wanted} images are asked for, {len(images)} given")
    tokens = tokenise(processor, messages, max_length)
    encoded = {"input_ids": tokens.input_ids, "labels": tokens.labels}
    if tokens.num_images:
        encoded["pixel_values"] = to_pixels(processor, images[: tokens.num_images])
    return encoded


def to_pixels(processor: LlavaProcessor, images: Sequence[Image.Image]) -> Tensor:
    """Pictures as float32 (N, 3, H, W): padded to a square with the mean colour, resized."""
    return processor.image_processor(list(images), return_tensors="pt")["pixel_values"]


def tokenise(
    processor: LlavaProcessor, messages: Sequence[Message], max_length: int | None = None
) -> Tokens:
    """The conversation's ids and labels; no picture is needed.

    Labels are the ids inside the template's generation blocks, everything else is IGNORED. A
    conversation longer than ``max_length`` loses whole exchanges from its end, and a first one
    that is still too long the end of its answer. TooLongError where that would cut an image or
    leave no answer at all; ValueError where a picture is asked for that the template does not show.
    """
    kept = list(messages)
    ids_L, labels_L = _tokenise_whole(processor, kept)
    full_length = ids_L.numel()
    dropped = 0
    while max_length is not None and ids_L.numel() > max_length:
        begins = [place for place, message in enumerate(kept) if message["role"] == "user"]
        if len(begins) == 1:
            _refuse_cut(ids_L == processor.image_token_id, labels_L, max_length)
            ids_L, labels_L = ids_L[:max_length].clone(), labels_L[:max_length].clone()
            return Tokens(ids_L, labels_L, count_images(kept), full_length, dropped, True)
        kept = kept[: begins[-1]]
        dropped += 1
        ids_L, labels_L = _tokenise_whole(processor, kept)
    return Tokens(ids_L, labels_L, count_images(kept), full_length, dropped, False)


def measure(
    processor: LlavaProcessor, messages: Sequence[Message], max_length: int | None = None
) -> Measure:
    """How long ``encode`` makes the conversation, and what is lost; ValueErrors of ``tokenise``."""
    tokens = tokenise(processor, messages, max_length)
    return Measure(
        tokens.input_ids.numel(), tokens.full_length, tokens.exchanges_dropped, tokens.answer_cut
    )


def image_tokens(processor: LlavaProcessor) -> int:
    """Placeholders of one image, by the processor's own rule."""
    size = processor.image_processor.size
    pixels_NCHW = np.broadcast_to(np.float32(0), (1, 3, size["height"], size["width"]))
    replacement = processor.replace_image_token({"pixel_values": pixels_NCHW}, 0)
    return replacement.count(processor.image_token)


def processor_fingerprint(processor: LlavaProcessor) -> str:
    """16 hex digits over all that a row's length depends on: processors alike measure alike.

    These are the tokenizer, the chat template and the tokens of an image.
    """
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for key in ("padding", "truncation"):  # left there by the last call, no property of it
        tokenizer.pop(key)
    content = [tokenizer, processor.chat_template, processor.image_token, image_tokens(processor)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def tokenise_prompt(processor: LlavaProcessor, messages: Sequence[Message]) -> Tensor:
    """Ids (L,) of a prompt, ending where the answer begins; no picture is needed."""
    (text,), _ = render_jinja_template(
        [messages],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        **processor.tokenizer.special_tokens_map,
    )
    ids_L = np.array(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    return _with_placeholders(processor, ids_L, count_images(messages))[0]


def _tokenise_whole(
    processor: LlavaProcessor, messages: Sequence[Message]
) -> tuple[Tensor, Tensor]:
    """Ids and labels (L,) of all messages."""
    (text,), (spans,) = render_jinja_template(
        [messages],
        chat_template=processor.chat_template,
        return_assistant_tokens_mask=True,
        **processor.tokenizer.special_tokens_map,
    )
    rendered = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids_L = np.array(rendered["input_ids"], dtype=np.int64)
    begins_L, ends_L = np.array(rendered["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    answered_L = np.zeros(len(ids_L), dtype=bool)
    for begin, end in spans:
        answered_L |= (begins_L < end) & (ends_L > begin)
    ids, repeats_L = _with_placeholders(processor, ids_L, count_images(messages))
    return ids, ids.masked_fill(torch.from_numpy(~answered_L.repeat(repeats_L)), IGNORED)


def _with_placeholders(
    processor: LlavaProcessor, ids_L: np.ndarray, wanted: int
) -> tuple[Tensor, np.ndarray]:
    """The ids with each image token as often as a picture needs it, and how often each stands."""
    is_image_L = ids_L == processor.image_token_id
    if (shown := int(is_image_L.sum())) != wanted:
        raise ValueError(
            f"the text has {shown} {processor.image_token} tokens and {wanted} images: pictures "
            f"stand in questions only, and only where the row says so"
        )
    # A placeholder is a special token, so a run of it is tokenised as one is.
    repeats_L = np.where(is_image_L, image_tokens(processor), 1)
    return torch.from_numpy(ids_L.repeat(repeats_L)), repeats_L


def _refuse_cut(is_image_L: Tensor, labels_L: Tensor, max_length: int) -> None:
    answered_L = labels_L[:max_length] != IGNORED
    if not answered_L.any() or is_image_L[max_length:].any():
        raise TooLongError(
            f"the first turn needs {labels_L.numel()} tokens, {int(is_image_L.sum())} of them "
            f"image tokens, but max_length={max_length} would cut an image or leave no answer: "
            f"raise max_length or drop the sample"
        )
