"""The only file here that imports torch and llava_compete: samples in, texts and losses out.

B samples, L positions with image tokens, A answer tokens in the batch, T new tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import llava_compete
from eval.inference import Inference
from eval.predict import Answer
from eval.store import Record
from eval.task import Sample
from llava_compete import MoEConfig, RoutingChange, SelfContrast
from llava_compete.checkpoint import changed_configs, read_config
from llava_compete.data import Collator, ImageFolder, encode
from llava_compete.data.images import picture_side
from llava_compete.processor import prompt_batch


class LlavaCompete:
    """A checkpoint behind ``eval.predict.Model``; decoding is greedy."""

    def __init__(
        self, model: Any, processor: Any, self_contrast: SelfContrast | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.self_contrast = self_contrast

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, inference: Inference) -> "LlavaCompete":
        """Read a checkpoint directory; on the GPU if there is one.

        ValueError where it cannot be loaded so, and where its routing would see the answers.
        """
        routing, self_contrast = _asked(inference)
        model, processor = llava_compete.load(checkpoint, dtype=dtype, routing=routing)
        model.check_causal()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device).eval(), processor, self_contrast)

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
        return generate(self.model, self.processor, samples, max_new_tokens, self.self_contrast)

    def answer_losses(self, samples: Sequence[Sample]) -> list[float]:
        return answer_loss(self.model, self.processor, samples)


def changes(checkpoint: Path, inference: Inference) -> Record:
    """What ``inference`` makes other than the checkpoint is saved, in whole; {} where nothing.

    ValueError where the checkpoint cannot be run so, as far as its config.json tells.
    """
    config = read_config(checkpoint)
    routing, self_contrast = _asked(inference)
    asked = changed_configs(config, routing, checkpoint)
    saved = _routings(config.moe_configs)
    found: Record = {}
    if other := {p: r for p, r in _routings(asked).items() if r != saved[p]}:
        found["routing"] = other
    if self_contrast is not None:
        self_contrast.check(asked)
        found["self_contrast"] = asdict(self_contrast)
    return found


def _asked(inference: Inference) -> tuple[RoutingChange, SelfContrast | None]:
    routing = RoutingChange(
        router=inference.router,
        router_options=inference.router_options,
        top_k=inference.top_k,
        parts=inference.router_parts,
    )
    if inference.self_contrast is None:
        return routing, None
    return routing, SelfContrast.parse(inference.self_contrast)


def _routings(configs: Mapping[str, MoEConfig]) -> dict[str, Record]:
    # Of a MoEConfig what an answer depends on; loss weights and seeds are of training.
    return {
        part: {"router": c.router, "router_options": c.router_options, "top_k": c.top_k}
        for part, c in configs.items()
    }


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    max_new_tokens: int,
    self_contrast: SelfContrast | None = None,
) -> list[Answer]:
    """Greedy answers, batched with padding on the left."""
    prompts = [[_question(sample)] for sample in samples]
    batch = prompt_batch(processor, prompts, [_pictures(processor, sample) for sample in samples])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    ids_BT = model.generate(
        **batch, max_new_tokens=max_new_tokens, do_sample=False, self_contrast=self_contrast
    )
    texts = processor.batch_decode(ids_BT, skip_special_tokens=True)
    stops = _stop_tokens(model.generation_config.eos_token_id)
    return [_answer(text, ids, stops) for text, ids in zip(texts, ids_BT.tolist(), strict=True)]


@torch.no_grad()
def answer_loss(model: Any, processor: Any, samples: Sequence[Sample]) -> list[float]:
    """Mean negative log-likelihood of each sample's first reference, in nats a token.

    The tokens are those that training counts as the answer, its end included.
    """
    rows = [
        encode(processor, [_question(sample), _reference(sample)], _pictures(processor, sample))
        for sample in samples
    ]
    batch = {name: t.to(model.device) for name, t in Collator(processor)(rows).items()}
    losses_A = model(**batch).token_losses_A.float()
    counts = (batch["labels"][:, 1:] != -100).sum(dim=1).tolist()
    return _row_means(losses_A, counts, samples)


def _row_means(losses_A: Tensor, counts: list[int], samples: Sequence[Sample]) -> list[float]:
    if sum(counts) != len(losses_A):
        raise ValueError(
            f"{len(losses_A)} token losses came back for {sum(counts)} answer tokens: they must "
            f"be one for each label that is not -100, in the order of the batch"
        )
    if 0 in counts:
        raise ValueError(f"the reference of sample {samples[counts.index(0)].id} has no tokens")
    return [row.double().mean().item() for row in torch.split(losses_A, counts)]


def _question(sample: Sample) -> dict[str, Any]:
    content = [{"type": "image"} for _ in sample.images]
    return {"role": "user", "content": [*content, {"type": "text", "text": sample.prompt}]}


def _reference(sample: Sample) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": sample.references[0]}]}


def _pictures(processor: Any, sample: Sample) -> list[Image.Image]:
    side = picture_side(processor)
    return [ImageFolder(path.parent).open(path.name, sample.id, side) for path in sample.images]


def _stop_tokens(eos: int | list[int] | None) -> set[int]:
    if eos is None:
        raise ValueError("generation_config.eos_token_id is None: an answer would never stop")
    return {eos} if isinstance(eos, int) else set(eos)


def _answer(text: str, ids: list[int], stops: set[int]) -> Answer:
    # After its stop token a row is only padded up to the longest answer of the batch.
    for position, token in enumerate(ids):
        if token in stops:
            return Answer(text, position + 1, finished=True)
    return Answer(text, len(ids), finished=False)
