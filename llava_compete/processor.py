"""Text and pictures -> tensors; the only place that knows the image token.

N images, H and W pixels, L sequence with image placeholders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from llava_compete.names import nearest

if TYPE_CHECKING:  # what only reads rows or checks pictures does without torch
    import torch
    from PIL.Image import Image
    from transformers import LlavaProcessor, PreTrainedTokenizerBase

    from llava_compete.vision import VisionConfig

IMAGE_TOKEN = "<image>"

# {"role": ..., "content": str or [{"type": "image"} | {"type": "text", "text": ...}]}
Message = dict[str, Any]


class ChatFormat(NamedTuple):
    """The markers around a turn; ``tokens`` are what a tokenizer must know to use them."""

    tokens: tuple[str, ...]
    user: tuple[str, str]  # before, after
    assistant: tuple[str, str, str]  # before, end (the model's own last token), after
    system: tuple[str, str]
    opening: str = ""  # of a conversation that has no system message
    lead: str = ""  # what every answer begins with


CHAT_FORMATS = {
    # SmolLM2, Qwen2, Qwen3
    "chatml": ChatFormat(
        tokens=("<|im_start|>", "<|im_end|>"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>", "\n"),
        system=("<|im_start|>system\n", "<|im_end|>\n"),
    ),
    "phi3": ChatFormat(
        tokens=("<|user|>", "<|assistant|>", "<|end|>"),
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>", "\n"),
        system=("<|system|>\n", "<|end|>\n"),
    ),
    "llama3": ChatFormat(
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", ""),
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    ),
    # For language models that bring no markers of their own, after LLaVA-1.5's.
    "plain": ChatFormat(
        tokens=(),
        user=("USER: ", "\n"),
        # A line break, not a space: a space would merge into the answer's first token.
        assistant=("ASSISTANT:\n", "", ""),
        system=("", "\n"),
    ),
    # Vicuna's, in which LLaVA-1.5 was trained (arXiv:2310.03744): by name only. The space is the
    # answer's, so that it may merge into its first token.
    "vicuna": ChatFormat(
        tokens=(),
        user=("USER: ", " "),
        assistant=("ASSISTANT:", "", ""),
        system=("", " "),
        opening="A chat between a curious user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user's questions. ",
        lead=" ",
    ),
}


def chat_format(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> ChatFormat:
    """The format called ``name``, or the first whose tokens ``tokenizer`` knows."""
    vocabulary = tokenizer.get_vocab()
    if name is None:
        name = next(n for n, f in CHAT_FORMATS.items() if all(t in vocabulary for t in f.tokens))
    if name not in CHAT_FORMATS:
        raise ValueError(f"chat_format={name!r} is not known{nearest(name, CHAT_FORMATS)}")
    chosen = CHAT_FORMATS[name]
    if missing := [token for token in chosen.tokens if token not in vocabulary]:
        raise ValueError(f"chat_format={name!r}: the tokenizer has no {missing}")
    if not chosen.assistant[1]:
        before, _, after = chosen.assistant
        chosen = chosen._replace(assistant=(before, tokenizer.eos_token, after))
    return chosen


def build_processor(
    tokenizer: PreTrainedTokenizerBase, vision: VisionConfig, *, format_name: str | None = None
) -> LlavaProcessor:
    """A LlavaProcessor for this tokenizer and tower; adds the image token to the tokenizer.

    Pictures are padded to a square with the mean colour, as in LLaVA-1.5, then resized; an image
    becomes ``vision.num_patches`` placeholder ids.
    """
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor

    turn = chat_format(tokenizer, format_name)
    begins = tokenizer.bos_token if tokenizer.encode("") else ""
    header = {"begin": begins, **turn._asdict()}
    body = (files("llava_compete") / "chat_template.jinja").read_text()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    side = {"height": vision.image_size, "width": vision.image_size}
    image_processor = LlavaImageProcessor(
        do_pad=True,
        size=side,
        do_center_crop=False,
        image_mean=list(vision.mean),
        image_std=list(vision.std),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=f"{{%- set turn = {json.dumps(header)} -%}}\n{body}",
    )


def end_of_turn_id(processor: LlavaProcessor) -> int:
    """Id of the token with which the model ends an answer; generation stops there."""
    messages = [{"role": "assistant", "content": "x"}]
    rendered = processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )
    ids, mask = rendered["input_ids"][0], rendered["assistant_masks"][0]
    return [token for token, answer in zip(ids, mask, strict=True) if answer][-1]


def with_images(messages: Sequence[Message], images: Sequence[Image]) -> list[Message]:
    """The messages with ``images`` put, in order, where they say ``{"type": "image"}``."""
    left = list(images)
    filled = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image", "image": left.pop(0)}
                if item["type"] == "image" and left
                else item
                for item in content
            ]
        filled.append({**message, "content": content})
    return filled


def count_images(messages: Sequence[Message]) -> int:
    """How many pictures the messages ask for."""
    return sum(
        item["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for item in message["content"]
    )


def prompt_batch(
    processor: LlavaProcessor,
    conversations: Sequence[Sequence[Message]],
    images: Sequence[Sequence[Image]],
) -> dict[str, torch.Tensor]:
    """Prompts for generation: left padded, each ending where the answer begins.

    Returns ``input_ids`` and ``attention_mask`` int64 (B, L) and, where there are pictures,
    ``pixel_values`` float32 (N, 3, H, W).
    """
    filled = []
    for index, (messages, pictures) in enumerate(zip(conversations, images, strict=True)):
        if (wanted := count_images(messages)) != len(pictures):
            raise ValueError(f"prompt {index} asks for {wanted} images, {len(pictures)} are given")
        filled.append(with_images(messages, pictures))
    batch = processor.apply_chat_template(
        filled,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
    )
    return {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "pixel_values")
        if name in batch
    }
