"""Self-contrast decoding (SCMoE, arXiv:2405.14507): what the chosen experts know better.

B prompts, R rows (B times beams or returned sequences), L positions of a prompt, T tokens
generated so far, V vocabulary, D width of the language model.

The strong pass is the model as it routes; the weak pass sends each token to the expert of one rank
alone. Both read the same prompt and the same generated tokens, each with a cache of its own, so a
token costs two forwards. The weak pass routes weakly in every part that has experts, so a picture
too is seen by the weak experts of tower and projector; the paper has language models only.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import GenerationMode

from llava_compete.moe import MoEConfig, MoELayer
from llava_compete.names import nearest

if TYPE_CHECKING:
    from llava_compete.model import LlavaCompeteForConditionalGeneration

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH)


@dataclass(frozen=True, kw_only=True)
class SelfContrast:
    """(1 + beta) * strong - beta * weak, where strong's probability is at least alpha of its best.

    Defaults of the paper. ValueError where a value is impossible.
    """

    alpha: float = 0.1
    beta: float = 0.5
    weak_rank: int = 2  # of the weak pass's expert: 1 is the router's first choice

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"self_contrast: {name}={value!r} must be a number")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"self_contrast: alpha={self.alpha} must be above 0 and at most 1")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"self_contrast: beta={self.beta} must not be negative or infinite")
        if not isinstance(self.weak_rank, int) or self.weak_rank < 1:
            raise ValueError(
                f"self_contrast: weak_rank={self.weak_rank} must be a whole number from 1"
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "SelfContrast":
        """Of ``{"alpha": ..., "beta": ..., "weak_rank": ...}``; ValueError for any other name."""
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"self_contrast: {name!r} is not known{nearest(name, known)}")
        return cls(**values)

    def check(self, configs: Mapping[str, MoEConfig]) -> None:
        """ValueError where the parts' experts do not have a rank ``weak_rank``."""
        if not configs:
            raise ValueError(
                "self_contrast: the model is dense, and weak routing needs experts; "
                "`llava-compete upcycle` makes them"
            )
        for part, config in configs.items():
            if self.weak_rank > config.num_experts:
                raise ValueError(
                    f"self_contrast: weak_rank={self.weak_rank} must not be above "
                    f"num_experts={config.num_experts} of {part}"
                )


def contrast(strong_RV: Tensor, weak_RV: Tensor, options: SelfContrast) -> Tensor:
    """Contrasted log-probabilities, float32 (R, V); -inf for what the strong pass finds unlikely.

    The paper's logits, normalised: whether logits or log-probabilities come in changes nothing,
    and beams compare log-probabilities.
    """
    strong_RV, weak_RV = strong_RV.float(), weak_RV.float()
    floor_R1 = strong_RV.max(dim=-1, keepdim=True).values + log(options.alpha)
    logits_RV = (1 + options.beta) * strong_RV - options.beta * weak_RV
    return logits_RV.masked_fill(strong_RV < floor_R1, -torch.inf).log_softmax(dim=-1)


@contextmanager
def weak_routing(layers: Iterable[MoELayer], rank: int) -> Iterator[None]:
    """Inside, each of the layers sends a token to its expert of that rank alone."""
    layers = list(layers)
    for layer in layers:
        layer.weak_rank = rank
    try:
        yield
    finally:
        for layer in layers:
            layer.weak_rank = None


def check_generation(
    model: "LlavaCompeteForConditionalGeneration",
    options: SelfContrast,
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
) -> None:
    """ValueError where the weak pass could not keep step with the strong one.

    Beam sampling wants more tokens than the contrast may leave; assisted decoding goes back over
    tokens; under ZeRO-3 the ranks would run different numbers of forwards.
    """
    options.check(model.config.moe_configs)
    mode = config.get_generation_mode(model_kwargs.get("assistant_model"))
    if mode not in MODES:
        raise ValueError(
            f"self_contrast: decoding by {mode.value} is not supported; "
            f"there are {', '.join(known.value for known in MODES)}"
        )
    if model_kwargs.get("past_key_values") is not None:
        raise ValueError(
            "self_contrast: past_key_values hold what the strong pass has read; the weak pass "
            "has to read the whole prompt: pass it and no cache"
        )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError("self_contrast: not with weights that ZeRO-3 has spread over ranks")


def weak_pass(
    model: "LlavaCompeteForConditionalGeneration",
    options: SelfContrast,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    pixel_values: Tensor | None,
    image_features: Tensor | None = None,
) -> "WeakPass":
    """The weak pass of one generation, its pictures seen by the weak experts too.

    ValueError for features of a tower with experts: what the weak ones see is not in them.
    """
    if image_features is not None and "vision" in model.moe_layers():
        raise ValueError(
            "self_contrast: image_features are of the tower's chosen experts, and the weak pass "
            "needs those of the weak: pass pixel_values"
        )
    layers = [layer for part in model.moe_layers().values() for layer in part]
    with weak_routing(layers, options.weak_rank):
        prompt_BLD = model.embed(input_ids_BL, pixel_values, image_features)
    return WeakPass(options, model.language_model, layers, prompt_BLD, attention_mask_BL)


class WeakPass(LogitsProcessor):
    """Contrasts the scores of one generation with those of the weakly routed model.

    ``prompt_BLD`` and ``mask_BL`` (1: a token, 0: padding on the left) are what the strong pass
    reads. It comes before what reshapes a distribution (temperature, top-k, top-p) and behind
    what forbids or penalises tokens.
    """

    def __init__(
        self,
        options: SelfContrast,
        language_model: PreTrainedModel,
        layers: Iterable[MoELayer],
        prompt_BLD: Tensor,
        mask_BL: Tensor,
    ) -> None:
        self.options = options
        self.language_model = language_model
        self.layers = list(layers)
        self.prompt_BLD = prompt_BLD
        self.mask = mask_BL.long()  # grows to (R, L + T)
        self.cache = DynamicCache(config=language_model.config)
        self.ids_RT: Tensor | None = None  # what the cache has read beside the prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with weak_routing(self.layers, self.options.weak_rank):
            if self.ids_RT is None:
                weak_RV = self._prefill(input_ids)
            else:
                weak_RV = self._step(input_ids, self.ids_RT)
        self.ids_RT = input_ids
        return contrast(scores, weak_RV, self.options)

    def _prefill(self, ids_R0: Tensor) -> Tensor:
        """Logits (R, V) behind the prompts, each read once and then copied to its rows."""
        logits_BV = self._forward(inputs_embeds=self.prompt_BLD)
        copies = len(ids_R0) // len(self.prompt_BLD)
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self.mask = self.mask.repeat_interleave(copies, dim=0)
        return logits_BV.repeat_interleave(copies, dim=0)

    def _step(self, ids_RT: Tensor, read_RT: Tensor) -> Tensor:
        """Logits (R, V) behind the newest of ``ids_RT``; ``read_RT`` are without it."""
        assert ids_RT.shape[1] == read_RT.shape[1] + 1, "a pass for each token, in order"
        if (copies := len(ids_RT) // len(self.prompt_BLD)) > 1:
            self.cache.reorder_cache(_rows_before(ids_RT, read_RT, copies))
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        return self._forward(input_ids=ids_RT[:, -1:])

    def _forward(self, **tokens: Tensor) -> Tensor:
        num_new = next(iter(tokens.values())).shape[1]
        position_ids = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -num_new:]
        output = self.language_model(
            **tokens,
            attention_mask=self.mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _rows_before(ids_RT: Tensor, read_RT: Tensor, copies: int) -> Tensor:
    """The row (R,) of ``read_RT`` that each row of ``ids_RT`` goes on from.

    Beam search tells a processor no parents. A row of the same prompt with the same tokens has
    the same cache, whichever the parent was.
    """
    prompt_R = torch.arange(len(ids_RT), device=ids_RT.device) // copies
    same_RR = torch.eq(ids_RT[:, None, :-1], read_RT).all(dim=-1)
    same_RR &= prompt_R[:, None] == prompt_R
    return same_RR.int().argmax(dim=1)
