"""The vision-language model: pixels and ids -> embeddings -> language model -> loss.

B batch, L sequence with image placeholders, N images in the batch, P patches an image, D language
width, A answer tokens in the batch.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from llava_compete.chunked_loss import give_losses
from llava_compete.data import IGNORED, Packing
from llava_compete.lora import LoraSettings, install_lora
from llava_compete.moe import MoEConfig, MoELayer, Sequences
from llava_compete.moe.collect import take_losses
from llava_compete.moe.upcycle import install_moe
from llava_compete.prefix import Prefix
from llava_compete.projector import build_projector
from llava_compete.self_contrast import SelfContrast, check_generation, weak_pass
from llava_compete.vision import ImageTower, VisionConfig

LANGUAGE = "language_model"


class LlavaCompeteConfig(PreTrainedConfig):
    """Language model, image tower, projector and, where there are experts, their MoEConfig.

    ``moe`` maps a part (vision, projector, language_model) to the values of its MoEConfig;
    ``lora`` has the values of LoraSettings where there are adapters.
    """

    model_type = "llava_compete"
    sub_configs_defaults = {  # noqa: RUF012 (transformers' own form)
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: Any = None  # a PreTrainedConfig once made
    vision_config: dict | None = None
    projector: str = "mlp2x_gelu"
    image_token_id: int = -1
    moe: dict | None = None
    lora: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    @property
    def vision(self) -> VisionConfig:
        """The image tower's configuration, checked."""
        if self.vision_config is None:
            raise ValueError("config.json has no vision_config: was it written by compose?")
        return VisionConfig(**self.vision_config)

    @property
    def moe_configs(self) -> dict[str, MoEConfig]:
        """MoEConfig of each part that has experts; empty for a dense model."""
        return {part: MoEConfig(**values) for part, values in (self.moe or {}).items()}


@dataclass
class LlavaCompeteOutput(ModelOutput):
    """``losses`` and ``metrics`` are detached, unweighted means for the log, keyed part/name.

    A part that saw no token to count (a text-only batch's projector) says NaN there.
    """

    loss: Tensor | None = None  # to minimise: language loss + weighted router losses
    logits: Tensor | None = None  # (B, L', V), only without labels
    token_losses_A: Tensor | None = None  # cross-entropy of each answer token, rows in order
    losses: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None
    # What each loss of this forward came to; a value that is not finite is a fault.
    terms: dict[str, Tensor] | None = None


class LlavaCompeteForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Image tower, projector and a causal language model, dense or with experts."""

    config_class = LlavaCompeteConfig
    config: LlavaCompeteConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer then passes num_items_in_batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LlavaCompeteConfig) -> None:
        super().__init__(config)
        text_config = config.text_config
        self.language_model = AutoModelForCausalLM.from_config(text_config)
        give_losses(self.language_model)
        self.vision = ImageTower(config.vision)
        self.projector = build_projector(
            config.projector, config.vision.width, text_config.hidden_size
        )
        self._no_split_modules = self.language_model._no_split_modules
        install_moe(self, config.moe_configs)
        if config.lora is not None:
            install_lora(self, LoraSettings.of(config.lora))
        self.watch_token_ids()
        self.post_init()

    def watch_token_ids(self) -> None:
        """Hand the language model's routers the ids of their tokens, where they need them."""
        if any(layer.router.needs_token_ids for layer in self.moe_layers().get(LANGUAGE, ())):
            # Where every id passes, in training as in each step of a generation.
            self.get_input_embeddings().register_forward_pre_hook(self._record_token_ids)

    def _record_token_ids(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        ids_T = args[0].reshape(-1)
        ids_T = ids_T.masked_fill(ids_T == self.config.image_token_id, -1)
        for layer in self.moe_layers()[LANGUAGE]:
            layer.token_ids_T = ids_T

    def _init_weights(self, module: nn.Module) -> None:
        # Only modules of our own reach this; the language model initialises its own, and the
        # image tower's library has done so already.
        if isinstance(module, MoELayer):
            module.router.reset_parameters()
            module.experts.reset_parameters()

    def save_pretrained(
        self, save_directory: Any, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As transformers', with tied weights written once.

        DeepSpeed's engines hand in copies, in which transformers does not see the tie.
        """
        if state_dict is not None:
            tied = self.get_expanded_tied_weights_keys(all_submodels=True)
            state_dict = {name: value for name, value in state_dict.items() if name not in tied}
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def moe_layers(self) -> dict[str, list[MoELayer]]:
        """The MoE layers of each part, in order; parts without experts are left out."""
        parts = {
            "vision": self.vision,
            LANGUAGE: self.language_model,
            "projector": self.projector,
        }
        found = {
            part: [module for module in root.modules() if isinstance(module, MoELayer)]
            for part, root in parts.items()
        }
        return {part: layers for part, layers in found.items() if layers}

    def competitors(self) -> list[MoELayer]:
        """The MoE layers whose router can compete, parts in moe_layers' order."""
        layers = [layer for part in self.moe_layers().values() for layer in part]
        return [layer for layer in layers if layer.router.competes]

    def set_competing(self, flags: Iterable[bool]) -> None:
        """Say for each of ``competitors`` whether it competes in the coming step."""
        for layer, flag in zip(self.competitors(), flags, strict=True):
            layer.competing = flag

    def embed(
        self,
        input_ids_BL: Tensor,
        pixel_values: Tensor | None,
        image_features: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, L, D) with each image placeholder replaced by a projected patch.

        ``image_features`` (N, P, V), what the tower made of the pictures, stand for pixels. Where
        rows share pictures, ``image_index`` (N,) says which of those given each image is.
        """
        text_BLD = self.get_input_embeddings()(input_ids_BL)
        is_image_BL = input_ids_BL.eq(self.config.image_token_id)
        given = pixel_values if image_features is None else image_features
        images = given if image_index is None else image_index
        num_images = 0 if images is None else len(images)
        self._check_placeholders(int(is_image_BL.sum()), num_images)
        if given is not None and num_images:
            given = given.to(text_BLD.dtype)
            image_NPD = self._image_embeddings(given, image_index, counted=True)
            return text_BLD.masked_scatter(is_image_BL[..., None], image_NPD.to(text_BLD.dtype))
        if not self.training:
            return text_BLD
        # Under ZeRO-3 every rank must run every module: a text-only batch runs the image side on a
        # blank that reaches neither the loss nor a router statistic.
        size = self.config.vision.image_size
        shape = (3, size, size) if image_features is None else image_features.shape[1:]
        blank = torch.zeros(1, *shape, device=text_BLD.device, dtype=text_BLD.dtype)
        return text_BLD + 0.0 * self._image_embeddings(blank, None, counted=False).sum()

    def picture_features(self, pixel_values: Tensor, *, counted: bool = True) -> Tensor:
        """What the tower makes of pixels (N, 3, H, W): (N, P, V), which ``image_features`` takes.

        Where the tower has experts they count the tokens unless told that these are of a blank.
        """
        for layer in self.moe_layers().get("vision", ()):
            num_tokens = len(pixel_values) * self.vision.tokens_per_image()
            layer.mask_T = pixel_values.new_full((num_tokens,), counted, dtype=torch.bool)
        return self.vision(pixel_values)

    def _image_embeddings(
        self, given: Tensor, image_index: Tensor | None, *, counted: bool
    ) -> Tensor:
        """Of pixels (U, 3, H, W), or of features (U, P, V), which only the projector sees.

        With ``image_index`` (N,) these of each image. A part without experts sees a picture once,
        one with experts as often as rows show it: its routers' statistics are of the rows' tokens.
        """
        parts = self.moe_layers()
        features = given
        if given.dim() == 4:
            if "vision" in parts:
                given, image_index = _of_images(given, image_index), None
            features = self.picture_features(given, counted=counted)
        if "projector" not in parts:
            return _of_images(self.projector(features), image_index)
        features_NPV = _of_images(features, image_index)
        for layer in parts["projector"]:
            num_tokens = len(features_NPV) * self.config.vision.num_patches
            layer.mask_T = features_NPV.new_full((num_tokens,), counted, dtype=torch.bool)
        return self.projector(features_NPV)

    def _check_placeholders(self, num_tokens: int, num_images: int) -> None:
        patches = self.config.vision.num_patches
        if num_tokens != num_images * patches:
            raise ValueError(
                f"{num_tokens} image tokens in the prompts but {num_images * patches} image "
                f"features ({num_images} images x {patches} patches): was a prompt cut inside an "
                f"image, or a picture not passed?"
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int = 0,
        image_features: Tensor | None = None,
        image_index: Tensor | None = None,
        packing: Packing | None = None,
    ) -> LlavaCompeteOutput:
        """Language loss plus router losses, or logits where there are no ``labels``.

        ``input_ids``, ``attention_mask``, ``labels`` int64 (B, L); ``pixel_values`` (N, 3, H, W).
        ``labels`` are IGNORED off the answers and aligned with ``input_ids``. With
        ``num_items_in_batch``, the answer tokens of all micro-batches and ranks of an optimizer
        step, losses are this batch's share, so that shares add up to one large batch's loss.
        With labels, logits are computed at answers only, a chunk at a time, and not returned.
        ``image_features`` (N, P, V) from a cache stand for ``pixel_values``; ``image_index`` is as
        embed has it. With ``packing`` a sequence holds several rows: none sees another, positions
        begin anew in each, and a router's sequence is a row.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        for layers in self.moe_layers().values():
            for layer in layers:
                layer.routing = None  # a layer that does not run now has nothing to say
                layer.recording = True
        embeddings_BLD = self.embed(input_ids, pixel_values, image_features, image_index)
        for layer in self.moe_layers().get(LANGUAGE, ()):
            layer.mask_T = attention_mask.reshape(-1).bool()
            layer.sequences = None
            if packing is not None:
                layer.sequences = Sequences(packing.longest, packing.starts_Q)
        hidden_BLD = self.language_model.get_decoder()(
            inputs_embeds=embeddings_BLD,
            use_cache=False,
            **_attention_arguments(attention_mask, packing),
        ).last_hidden_state
        if labels is None:
            kept = hidden_BLD[:, -logits_to_keep:] if logits_to_keep else hidden_BLD
            return LlavaCompeteOutput(logits=self.get_output_embeddings()(kept))

        answered_BL = labels[:, 1:] != IGNORED
        hidden_AD = hidden_BLD[:, :-1][answered_BL]
        language = self.get_output_embeddings()(hidden_AD, labels[:, 1:][answered_BL])
        answers = answered_BL.sum()
        total = answers if num_items_in_batch is None else num_items_in_batch
        total = torch.as_tensor(total, device=answers.device).clamp(min=1)  # no answer: loss 0
        routers = take_losses(self.moe_layers(), self.config.moe_configs)
        # The share scales the router losses as the division by `total` scales the language loss;
        # unscaled they would count once per accumulated micro-batch.
        loss = language.total / total + routers.total * (answers / total)
        return LlavaCompeteOutput(
            loss=loss,
            token_losses_A=language.each_A,
            losses={"language": language.each_A.mean(), **routers.losses},
            metrics=routers.metrics,
            terms={"language": language.total.detach(), **routers.terms},
        )

    def check_causal(self) -> None:
        """ValueError where a token's experts in the language model depend on tokens behind it."""
        for layer in self.moe_layers().get(LANGUAGE, ()):
            if layer.router.sees_future:
                raise ValueError(
                    f"router {self.config.moe_configs[LANGUAGE].router} chooses for a token by "
                    f"the tokens behind it, which a generation does not know and the loss of an "
                    f"answer must not see; choose its form by token, "
                    f"router_options={{'scope': 'token'}}"
                )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        image_features: Tensor | None = None,
        prefix: Prefix | None = None,
        self_contrast: SelfContrast | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """New token ids (B, at most max_new_tokens); ``kwargs`` as transformers' generate.

        Prompts of unequal length are padded on the left (processor.prompt_batch does).
        ``image_features`` (N, P, V) of ``picture_features`` stand for ``pixel_values``.
        With ``prefix``, which is used up, the prompts are what comes behind it; neither beams nor
        ``self_contrast`` go with it. ``self_contrast`` decodes by the contrast with a weaker
        routing of the same model.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self.check_causal()
        for layer in self.moe_layers().get(LANGUAGE, ()):
            layer.mask_T = None  # of the last forward; a decoding step has another shape
            layer.sequences = None
        generation_config = copy.deepcopy(self.generation_config)
        model_kwargs = generation_config.update(**kwargs)
        num_beams = generation_config.num_beams or 1
        if prefix is not None and (self_contrast is not None or num_beams > 1):
            raise ValueError(
                "a prefix is kept for one row a prompt and one routing: give whole prompts to "
                "beam search and to self_contrast"
            )
        if self_contrast is not None:
            check_generation(self, self_contrast, generation_config, model_kwargs)
            pictures = (pixel_values, image_features)
            weak = weak_pass(self, self_contrast, input_ids, attention_mask, *pictures)
            others = model_kwargs.get("logits_processor") or ()
            model_kwargs["logits_processor"] = LogitsProcessorList([weak, *others])
        embeddings_BLD = self.embed(input_ids, pixel_values, image_features)
        if prefix is not None:
            embeddings_BLD, attention_mask = prefix.before(embeddings_BLD, attention_mask)
            model_kwargs["past_key_values"] = prefix.cache
        return self.language_model.generate(
            inputs_embeds=embeddings_BLD,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **model_kwargs,
        )


def _of_images(pictures: Tensor, image_index: Tensor | None) -> Tensor:
    """Of each image what its picture has. By indexing, whose gradient is a sum in fixed order."""
    return pictures if image_index is None else pictures[image_index]


def _attention_arguments(mask_BL: Tensor, packing: Packing | None) -> dict[str, Any]:
    """What tells a decoder which tokens see each other.

    Of a packed batch transformers makes the mask from positions that begin anew, where no other
    is given; flash attention and packed_sdpa read where the rows lie instead.
    """
    if packing is None:
        return {"attention_mask": mask_BL}
    return {
        "attention_mask": None,
        "position_ids": packing.position_ids,
        "cu_seq_lens_q": packing.starts_Q,
        "cu_seq_lens_k": packing.starts_Q,
        "max_length_q": packing.longest,
        "max_length_k": packing.longest,
        "row_lengths": packing.lengths,
    }


AutoConfig.register(LlavaCompeteConfig.model_type, LlavaCompeteConfig)
AutoModelForImageTextToText.register(LlavaCompeteConfig, LlavaCompeteForConditionalGeneration)
