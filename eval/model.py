"""Samples in, texts and losses out.

B samples, L positions with image tokens, A answer tokens in the batch, T new tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import llava_compete
from eval.decoding import decoding_of, routing_of
from eval.expert_load import ExpertLoad
from eval.inference import Inference
from eval.option_losses import answer_token_losses, cut
from eval.pictures import Pictures
from eval.predict import Answer, TooLargeError
from eval.sampling import Sampling
from eval.task import Sample
from llava_compete import SelfContrast
from llava_compete.data import IGNORED, Collator
from llava_compete.data.encode import tokenise, tokenise_prompt
from llava_compete.prefix import can_share, padded_left, run_prefixes, split


class LlavaCompete:
    """A checkpoint behind ``eval.predict.Model``; decoding is greedy unless told otherwise."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        self_contrast: SelfContrast | None = None,
        *,
        num_beams: int = 1,
        sampling: Sampling | None = None,
        workers: int = 2,
        expert_load: bool = False,
    ) -> None:
        self.model = model
        self.processor = processor
        self.self_contrast = self_contrast
        self.num_beams = num_beams
        self.sampling = sampling
        counted = expert_load and self._sees_by_experts()
        self.pictures = Pictures(model, processor, workers=workers, counted=counted)
        self._load = ExpertLoad(model) if expert_load else None
        self.tokens_saved = 0  # of prompts, run once for several

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        dtype: str,
        inference: Inference,
        local_rank: int = 0,
        workers: int = 2,
        expert_load: bool = False,
    ) -> "LlavaCompete":
        """Read a checkpoint directory; on this rank's GPU if there is one.

        ValueError where it cannot be loaded so, and where its routing would see the answers.
        """
        routing, self_contrast = routing_of(inference)
        num_beams, sampling = decoding_of(inference)
        model, processor = llava_compete.load(checkpoint, dtype=dtype, routing=routing)
        model.check_causal()
        device = torch.device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
        return cls(
            model.to(device).eval(),
            processor,
            self_contrast,
            num_beams=num_beams,
            sampling=sampling,
            workers=workers,
            expert_load=expert_load,
        )

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Near enough: of the prompt's text alone, and what the template puts around any."""
        if not samples:
            return []
        around, with_one = (
            len(tokenise_prompt(self.processor, [_question(Sample("", "", (), images))]))
            for images in ((), (Path(),))
        )
        texts = [sample.prompt for sample in samples]
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            around + len(text) + (with_one - around) * len(sample.images)
            for text, sample in zip(ids, samples, strict=True)
        ]

    def expect(self, samples: Sequence[Sample]) -> None:
        self.pictures.expect(samples)

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
        with _telling_of_memory():
            if self._load is not None:
                self._load.begin(len(samples))
            answers = self._within_positions(samples, self._generate(samples, max_new_tokens))
            if self._load is None:
                return answers
            counts = zip(samples, self._load.counts(), strict=True)
            experts = [found | self.pictures.counts(sample) for sample, found in counts]
            return [a._replace(experts=e) for a, e in zip(answers, experts, strict=True)]

    def answer_losses(self, samples: Sequence[Sample]) -> list[float]:
        """Of the tokens that training counts as the answer, its end included."""
        with _telling_of_memory():
            return self._losses(samples)

    @torch.no_grad()
    def _generate(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
        inputs = self._inputs(samples, max_new_tokens)
        with self._counting([[row] for row in range(len(samples))], inputs["attention_mask"]):
            ids_BT = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,  # a draw is the largest of noisy scores
                num_beams=self.num_beams,
                logits_processor=self.sampling and self.sampling.processors(samples),
                self_contrast=self.self_contrast,
            )
        texts = self.processor.batch_decode(ids_BT, skip_special_tokens=True)
        stops = _stop_tokens(self.model.generation_config.eos_token_id)
        return [_answer(text, ids, stops) for text, ids in zip(texts, ids_BT.tolist(), strict=True)]

    def _inputs(self, samples: Sequence[Sample], max_new_tokens: int) -> dict[str, Any]:
        """Of ``model.generate``: the prompts, or what is behind their prefix and the prefix."""
        prompts = [tokenise_prompt(self.processor, [_question(s)]) for s in samples]
        pad = self.processor.tokenizer.pad_token_id
        parts = None
        positions = 2 * max(map(len, prompts)) + max_new_tokens  # prefix and rest, both padded
        plain = self.num_beams == 1 and self.self_contrast is None
        if plain and can_share(self.model, positions):
            # Samples without pictures have a template's opening in common, too little to gain.
            groups = [sample.images or sample.id for sample in samples]
            parts = split(prompts, groups, self.model.config.image_token_id)
        if parts is None:
            # The weak pass of self-contrast sees pictures by other experts than the strong one.
            shared = not (self.self_contrast and self._sees_by_experts())
            ids_BL, mask_BL = padded_left(prompts, pad)
            pictures = self.pictures.inputs(samples, shared=shared)
            return self._on_device({"input_ids": ids_BL, "attention_mask": mask_BL} | pictures)
        shown = [samples[parts.owners.index(owner)] for owner in range(len(parts.prefixes))]
        pictures = self.pictures.inputs(shown, shared=True)
        # A prefix shows its pictures once for each of its questions.
        self.pictures.shown += _images(samples) - _images(shown)
        owned = [[i for i, o in enumerate(parts.owners) if o == p] for p in range(len(shown))]
        with self._counting(owned, padded_left(parts.prefixes, pad)[1]):
            prefix = run_prefixes(self.model, parts, pictures.get("image_features"), pad)
        self.tokens_saved += sum(map(len, prompts)) - sum(map(len, parts.prefixes + parts.rests))
        ids_BL, mask_BL = padded_left(parts.rests, pad)
        batch = self._on_device({"input_ids": ids_BL, "attention_mask": mask_BL})
        return batch | {"prefix": prefix}

    def _within_positions(self, samples: Sequence[Sample], answers: list[Answer]) -> list[Answer]:
        """The answers, marked where they stand behind more tokens than have trained positions."""
        positions = self.model.config.text_config.max_position_embeddings
        return [
            answer._replace(beyond=True) if length + answer.tokens > positions else answer
            for length, answer in zip(self.lengths(samples), answers, strict=True)
        ]

    def option_losses(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Of each of a sample's options as the answer, in order.

        One question at a time, and of its pictures, so that nothing else moves its losses.
        """
        with _telling_of_memory():
            return [self._option_losses(sample) for sample in samples]

    def _option_losses(self, sample: Sample) -> list[float]:
        answered = [replace(sample, references=(option,)) for option in sample.options]
        rows = [tokenise(self.processor, [_question(s), _reference(s)]) for s in answered]
        if not can_share(self.model, max(len(row.input_ids) for row in rows)):
            return self._losses(answered)
        alone = [replace(sample, images=(image,)) for image in sample.images]
        seen = [self.pictures.inputs([s], shared=True)["image_features"] for s in alone]
        features_NPV = torch.cat(seen) if seen else None
        pad = self.processor.tokenizer.pad_token_id
        self.tokens_saved += cut(rows) * (len(rows) - 1)
        losses_A = answer_token_losses(self.model, rows, features_NPV, pad)
        counts = [int((row.labels != IGNORED).sum()) for row in rows]
        return _row_means(losses_A, counts, answered)

    @torch.no_grad()
    def _losses(self, samples: Sequence[Sample]) -> list[float]:
        tokens = [tokenise(self.processor, [_question(s), _reference(s)]) for s in samples]
        rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in tokens]
        batch = Collator(self.processor)(rows)
        # Whoever watches experts of the tower counts the pictures of every question.
        batch |= self.pictures.inputs(samples, shared=not self._sees_by_experts())
        losses_A = self.model(**self._on_device(batch)).token_losses_A.float()
        counts = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).tolist()
        return _row_means(losses_A, counts, samples)

    def work(self) -> dict[str, int]:
        """See ``eval.predict.Model``."""
        return {
            "pictures_shown": self.pictures.shown,
            "pictures_seen": self.pictures.seen,
            "tokens_saved": self.tokens_saved,
        }

    def _counting(
        self, samples_of_row: Sequence[Sequence[int]], mask_BL: Tensor
    ) -> AbstractContextManager[None]:
        """Where experts' loads are asked for, see ExpertLoad.rows."""
        return nullcontext() if self._load is None else self._load.rows(samples_of_row, mask_BL)

    def _sees_by_experts(self) -> bool:
        return "vision" in self.model.moe_layers()

    def _on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}


@contextmanager
def _telling_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLargeError(str(error)) from error


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


def _images(samples: Sequence[Sample]) -> int:
    return sum(len(sample.images) for sample in samples)


def _reference(sample: Sample) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": sample.references[0]}]}


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
