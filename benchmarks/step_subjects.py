"""Models whose training step is measured, and rows for them.

B sequences of L tokens, N images of P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from benchmarks import mixture
from llava_compete import LlavaCompeteForConditionalGeneration as Model
from llava_compete import MoEConfig
from llava_compete.data import IGNORED, Collator
from llava_compete.model import LlavaCompeteConfig
from llava_compete.packed_attention import PACKED_SDPA
from llava_compete.training.parts import set_trainable
from llava_compete.vision import describe_tower

SCALE = 4  # the mixture's rows are so many times longer than the rows here


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by its shape, with the rows of a batch; weights are random and seeded."""

    text: dict[str, Any]  # of a LlamaConfig
    tower: str
    layer: int | str
    image_size: int
    moe_layers: tuple[int, ...] | None
    moe_projector: bool
    trainable: tuple[str, ...]
    rows: int
    answered: float  # share of a row's tokens behind its picture
    mixed: bool  # lengths of LLaVA's mixture, scaled down; else about 210 tokens each
    max_length: int  # of a sequence that rows are packed into
    dtype: str = "bfloat16"

    def build(self, device: torch.device) -> Model:
        """In training mode, for packed rows."""
        vision = describe_tower(self.tower, self.layer, image_size=self.image_size)  # type: ignore[arg-type]
        experts = MoEConfig(num_experts=4, top_k=2, router="compete")
        moe = {"language_model": replace(experts, layers=self.moe_layers).to_dict()}
        if self.moe_projector:
            moe["projector"] = experts.to_dict()
        text = LlamaConfig(**self.text)
        config = LlavaCompeteConfig(
            text_config=text,
            vision_config=vision.to_dict(),
            image_token_id=text.vocab_size - 1,
            moe=moe,
        )
        torch.manual_seed(0)
        model = Model(config).to(device, getattr(torch, self.dtype))
        model.language_model.set_attn_implementation(PACKED_SDPA)
        set_trainable(model, list(self.trainable))
        return model.train()

    def lengths(self, patches: int, seed: int) -> list[int]:
        """Tokens of each row; those of pictures are ``patches`` of them."""
        generator = np.random.default_rng(seed)
        if not self.mixed:
            return generator.integers(205, 218, self.rows).tolist()
        drawn = generator.choice(mixture.draw_lengths(), self.rows, replace=False)
        return [max(int(length) // SCALE, patches + 16) for length in drawn]


_QUICKSTART = (
    Subject(  # SmolLM2-135M and EfficientNet-Lite0, as scripts/quickstart.sh puts together
        text={
            "vocab_size": 49_153,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        tower="timm/tf_efficientnet_lite0",
        layer="final",
        image_size=160,
        moe_layers=tuple(range(2, 30, 3)),
        moe_projector=True,
        trainable=("projector", "experts", "routers"),
        rows=4,
        answered=0.06,
        mixed=False,
        max_length=1024,
    )
)
_WIDE = Subject(
    text={
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
    },
    tower="timm/test_vit",
    layer=-2,
    image_size=192,  # 144 patches, a fourth of 576
    moe_layers=None,
    moe_projector=False,
    trainable=("projector", "language_model"),
    rows=8,
    answered=0.5,  # of the text: of all tokens about one in five
    mixed=True,
    # All rows in one sequence: packs of many rows are 99 % full (docs/data.md), of few not so.
    max_length=mixture.MAX_LENGTH,
)
_TINY = Subject(
    text={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    tower="timm/test_vit",
    layer=-2,
    image_size=32,
    moe_layers=None,
    moe_projector=False,
    trainable=("projector", "language_model"),
    rows=3,
    answered=0.5,
    mixed=True,
    max_length=mixture.MAX_LENGTH // SCALE,
    dtype="float32",
)
SUBJECTS = {"quickstart": _QUICKSTART, "wide": _WIDE, "tiny": _TINY}


def draw_rows(subject: Subject, model: Model, seed: int) -> list[dict[str, Any]]:
    """Samples as a dataset gives them: a picture of noise, random text, an answer at the end."""
    vision, image_token = model.config.vision, model.config.image_token_id
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, length in enumerate(subject.lengths(vision.num_patches, seed)):
        ids_L = torch.randint(image_token, (length,), generator=generator)
        ids_L[8 : 8 + vision.num_patches] = image_token
        answer = max(1, round(subject.answered * (length - vision.num_patches)))
        labels_L = torch.full_like(ids_L, IGNORED)
        labels_L[-answer:] = ids_L[-answer:]
        shape = (1, 3, vision.image_size, vision.image_size)
        samples.append(
            {
                "input_ids": ids_L,
                "labels": labels_L,
                "pixel_values": torch.randn(shape, generator=generator),
                "image_files": [f"{number}.jpg"],
            }
        )
    return samples


def padded(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each row a sequence, as long as the longest."""
    return _collate(list(samples))


def packed(samples: Sequence[dict[str, Any]], max_length: int) -> dict[str, Any]:
    """The rows, the longest first, each in the fullest sequence that still has room."""
    packs: list[list[dict[str, Any]]] = []
    for sample in sorted(samples, key=lambda sample: -len(sample["input_ids"])):
        room = max_length - len(sample["input_ids"])
        fits = [pack for pack in packs if _tokens(pack) <= room]
        if fits:
            max(fits, key=_tokens).append(sample)
        else:
            packs.append([sample])
    return _collate(packs)


def _tokens(pack: Sequence[dict[str, Tensor]]) -> int:
    return sum(len(sample["input_ids"]) for sample in pack)


def _collate(samples: list[Any]) -> dict[str, Any]:
    tokenizer = SimpleNamespace(pad_token_id=0)
    return Collator(SimpleNamespace(tokenizer=tokenizer))(samples)
