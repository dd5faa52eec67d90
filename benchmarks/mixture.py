"""A stand-in for LLaVA's mix of 665,298 rows: its sources in their numbers, rows of typical length.

The numbers are those of the published file. Token counts are drawn log-normally around what rows
of a source look like: a picture of 576 tokens (CLIP ViT-L/14 at 336 pixels) and, as median text,
200 tokens for COCO (conversations, details and VQA in several turns), 190 for GQA (about ten short
questions a picture), 130 for OCR-VQA (five about a book cover), 190 for TextVQA (with the words
read in the picture), 260 for Visual Genome (about ten regions with their boxes) and 900 for
ShareGPT's texts, cut at 2048.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_TOKENS = 576
MAX_LENGTH = 2048


class Source(NamedTuple):
    """Rows of one origin."""

    rows: int
    text: int  # median tokens of a row beside its picture
    spread: float  # standard deviation of their logarithm
    picture: bool = True


MIX665K = {
    "coco": Source(364_100, 200, 0.6),
    "gqa": Source(72_140, 190, 0.45),
    "ocr_vqa": Source(80_000, 130, 0.25),
    "textvqa": Source(21_953, 190, 0.5),
    "vg": Source(86_417, 260, 0.5),
    "text": Source(40_688, 900, 0.9, picture=False),
}


def draw_lengths(seed: int = 0) -> NDArray[np.int32]:
    """Tokens of each of the 665,298 rows, image tokens included, in random order."""
    generator = np.random.default_rng(seed)
    lengths = []
    for source in MIX665K.values():
        text = np.exp(generator.normal(np.log(source.text), source.spread, source.rows))
        lengths.append(np.minimum(text + IMAGE_TOKENS * source.picture, MAX_LENGTH))
    return generator.permutation(np.concatenate(lengths)).astype(np.int32)
