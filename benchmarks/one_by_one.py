"""The evaluation that ours is measured against: LLaVA's loop, written from its description.

One question at a time: open the picture, pad it to a square, make pixels of it, write out the
prompt, generate greedily with a KV cache. Nothing is shared or begun ahead.
"""

from typing import Any

import torch
from PIL import Image

from eval.task import Sample
from llava_compete.data.encode import to_pixels
from llava_compete.processor import IMAGE_TOKEN

PROMPT = "<|im_start|>user\n{}\n{}<|im_end|>\n<|im_start|>assistant\n"


class OneByOne:
    """Answers of a model that was fine-tuned on ChatML, as the quickstart's is."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        side = processor.image_processor.size["height"]
        self.placeholders = IMAGE_TOKEN * (side // processor.patch_size) ** 2

    @torch.no_grad()
    def answer(self, sample: Sample, max_new_tokens: int) -> str:
        """The answer about the sample's one picture."""
        (path,) = sample.images
        pixel_values = to_pixels(self.processor, [Image.open(path).convert("RGB")])
        text = PROMPT.format(self.placeholders, sample.prompt)
        input_ids = self.processor.tokenizer(
            text, return_tensors="pt", add_special_tokens=False
        ).input_ids
        ids_1T = self.model.generate(
            input_ids=input_ids.to(self.model.device),
            pixel_values=pixel_values.to(self.model.device, self.model.dtype),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return self.processor.batch_decode(ids_1T, skip_special_tokens=True)[0]
