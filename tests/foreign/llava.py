"""Tiny LLaVA checkpoints of transformers and in LLaVA's own layout, random in every tensor."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_compete import LlavaCompeteForConditionalGeneration
from llava_compete.foreign.imported import Imported, build
from tests import tiny

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
TOWERS = {
    "clip": (CLIPVisionConfig, CLIPVisionModel, {"hidden_act": "quick_gelu", "projection_dim": 16}),
    "clip_gelu": (CLIPVisionConfig, CLIPVisionModel, {"hidden_act": "gelu"}),
    "siglip": (SiglipVisionConfig, SiglipVisionModel, {"hidden_act": "gelu_pytorch_tanh"}),
}


def make_random(model: nn.Module) -> nn.Module:
    """Every tensor moved: fresh biases and norms are all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_tokenizer() -> Any:
    """Without markers of a chat, with the image token, as LLaVA-1.5's."""
    tokenizer = tiny.make_tokenizer(())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def make_text_config(family: str, vocab_size: int, **values: Any) -> Any:
    return tiny.FAMILIES[family][0](
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        pad_token_id=None,
        **values,
    )


def make_hf_llava(
    folder: Path,
    tower: str = "clip",
    family: str = "llama",
    text: dict[str, Any] | None = None,
    **values: Any,
) -> LlavaForConditionalGeneration:
    """A checkpoint of transformers in ``folder``, 8 rows of its vocabulary without a token."""
    tokenizer = make_tokenizer()
    vision_class, _, more = TOWERS[tower]
    config = LlavaConfig(
        vision_config=vision_class(**SIZES, **more),
        text_config=make_text_config(family, len(tokenizer) + 8, **(text or {})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **{"vision_feature_select_strategy": "full" if tower == "siglip" else "default"} | values,
    )
    torch.manual_seed(0)
    model = make_random(LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def make_tower(folder: Path, tower: str = "clip") -> Path:
    """A tower of transformers alone."""
    config_class, model_class, more = TOWERS[tower]
    torch.manual_seed(1)
    make_random(model_class(config_class(**SIZES, **more))).save_pretrained(folder)
    return folder


def original_config(theirs: LlavaForConditionalGeneration, tower: str, **more: Any) -> dict:
    """config.json of LLaVA's own layout for the same model."""
    text = theirs.config.text_config.to_dict()
    return {
        **text,
        "model_type": f"llava_{theirs.config.text_config.model_type}",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": tower,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": SIZES["hidden_size"],
        "image_aspect_ratio": "pad",
        **more,
    }


def original_state(theirs: LlavaForConditionalGeneration, *, tower: bool) -> dict[str, Tensor]:
    """The same weights under LLaVA's own keys."""
    renamed = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "lm_head.": "lm_head.",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        old = next(prefix for prefix in renamed if key.startswith(prefix))
        state[renamed[old] + key.removeprefix(old)] = value
    return {k: v for k, v in state.items() if tower or ".vision_tower." not in k}


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def built(imported: Imported, folder: Path) -> LlavaCompeteForConditionalGeneration:
    """The imported model, in float32."""
    return build(imported, AutoTokenizer.from_pretrained(folder))[0]


@torch.no_grad()
def largest_difference(
    theirs: LlavaForConditionalGeneration,
    ours: LlavaCompeteForConditionalGeneration,
    *,
    picture: bool,
) -> float:
    """Of any logit of two rows, relative to the largest logit."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 200, (2, 12), generator=generator)
    given, taken = {}, {}
    rows = theirs.config.text_config.vocab_size
    their_ids = ids.clone()
    if picture:
        pixels = torch.randn(2, 3, 16, 16, generator=generator)
        given = taken = {"pixel_values": pixels}
        ids[:, 3:7] = ours.config.image_token_id
        their_ids[:, 3:7] = theirs.config.image_token_id
    wanted = theirs(input_ids=their_ids, **given).logits
    found = ours(ids, **taken).logits[..., :rows]
    return float((found - wanted).abs().max() / wanted.abs().max())
