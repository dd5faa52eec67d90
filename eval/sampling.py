"""Answers drawn from the model's distribution, the same ones whatever the batch.

R rows, one a question; V vocabulary.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eval.task import Sample
from llava_compete.names import nearest


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draw each token; ``top_k`` 0 and ``top_p`` 1 leave all tokens in.

    ValueError where a value is impossible.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            kinds = int if name in ("top_k", "seed") else int | float
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"sampling: {name}={value!r} must be a number")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"sampling: temperature={self.temperature} must be above 0 and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p={self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"sampling: top_k={self.top_k} must not be negative")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Sampling":
        """Of ``{"temperature": ..., ...}``; ValueError for any other name."""
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"sampling: {name!r} is not known{nearest(name, known)}")
        return cls(**values)

    def processors(self, samples: Sequence[Sample]) -> LogitsProcessorList:
        """What makes greedy decoding draw: scores are warped, then noise is added to them."""
        found = LogitsProcessorList()
        if self.temperature != 1:
            found.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(float(self.top_p)))
        found.append(GumbelNoise([_seed(self.seed, sample) for sample in samples]))
        return found


class GumbelNoise(LogitsProcessor):
    """The largest of log-probabilities plus Gumbel noise is a draw from their distribution.

    Each row has a generator of its own, so its draws do not depend on the rows beside it.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [
            torch.empty(scores.shape[1], dtype=torch.float64).exponential_(generator=generator)
            for generator in self.generators
        ]
        noise_RV = -torch.stack(rows).log()
        return scores.float() + noise_RV.to(scores.device, torch.float32)


def _seed(seed: int, sample: Sample) -> int:
    # Not of the pictures: right and shuffled then share their draws, and only the picture differs.
    text = f"{seed}\n{sample.id}\n{sample.prompt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
