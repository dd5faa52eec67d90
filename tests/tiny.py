"""Tiny but real models, tokenizers and data, made in a second and random but seeded.

Widths are multiples of 4: torch's grouped matrix product wants rows of 16 bytes.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llava_compete import (
    LlavaCompeteForConditionalGeneration,
    MoEConfig,
    compose,
    save,
    upcycle_model,
)
from llava_compete.data import IGNORED, Collator, to_messages
from llava_compete.data.encode import encode
from llava_compete.vision import ImageTower, VisionConfig, describe_tower

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
PARTS = ("language_model", "projector")
CHATML = ("<|im_start|>", "<|im_end|>")

TOWER_NAME = "tiny-vit"
IMAGE_SIZE = 16
NUM_PATCHES = 4  # (16 / 8) squared
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_tokenizer(markers: Collection[str] = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, and the chat markers; no beginning-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(markers)})
    return fast


def make_language_model(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A causal language model of 2 layers, width 32, with its tokenizer; llama's ends are tied."""
    tokenizer = make_tokenizer()
    config_class, model_class = FAMILIES[family]
    values: dict[str, Any] = {"head_dim": 8} if family == "qwen3" else {}
    config = config_class(
        vocab_size=len(tokenizer),  # compose has to make room for the image token
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,  # else random logits are all alike
        tie_word_embeddings=family == "llama",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **values,
    )
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tower(
    folder: Path,
    layer: int = -2,
    seed: int = 0,
    *,
    scales: tuple[int, ...] = (1,),
    quick_gelu: bool = False,
) -> tuple[VisionConfig, Path]:
    """A CLIP image tower of 3 blocks, width 32, 2 x 2 patches: its config and weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "layers": 3,
        "width": 32,
        "head_width": 16,
    }
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    registered = folder / f"{TOWER_NAME}.json"
    registered.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(registered)
    config = describe_tower(
        TOWER_NAME, layer, scales=scales, mean=MEAN, std=STD, quick_gelu=quick_gelu
    )
    torch.manual_seed(seed)
    whole = _build_vision_tower(16, dict(vision), quick_gelu=quick_gelu)
    weights = folder / "tower.safetensors"
    save_file({f"visual.{k}": v.contiguous() for k, v in whole.state_dict().items()}, weights)
    return config, weights


def make_timm_tower(
    folder: Path, *, scales: tuple[int, ...] = (1,), seed: int = 0
) -> tuple[VisionConfig, Path]:
    """timm's vision transformer of 6 blocks, width 64, 2 x 2 patches, at 32 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    config = describe_tower("timm/test_vit", scales=scales, image_size=32)
    torch.manual_seed(seed)
    weights = folder / "timm.safetensors"
    save_file(ImageTower(config).trunk.state_dict(), weights)
    return config, weights


def compose_tiny(
    folder: Path, family: str = "llama", make: Callable[..., Any] = make_tower, **tower: Any
) -> tuple[LlavaCompeteForConditionalGeneration, LlavaProcessor]:
    """A dense model and its processor, of parts written under ``folder``."""
    language = make_language_model(folder / "lm", family)
    vision, weights = make(folder / "tower", **tower)
    return compose(str(language), vision, str(weights))


def moe_configs(parts: Collection[str] = PARTS, **values: Any) -> dict[str, MoEConfig]:
    """E=4, K=2 in each part unless told otherwise; ``layers`` goes to the language model alone."""
    layers = values.pop("layers", None)
    return {
        part: MoEConfig(**values, layers=layers if part == "language_model" else None)
        for part in parts
    }


def make_checkpoint(
    folder: Path,
    family: str = "llama",
    moe: bool = True,
    *,
    parts: Collection[str] = PARTS,
    perturbation: float = 0.5,
    **moe_values: Any,
) -> Path:
    """A checkpoint directory ``folder``, its parts beside it; experts differ unless told not to."""
    model, processor = compose_tiny(folder.with_name(f"{folder.name}-parts"), family)
    if moe:
        upcycle_model(model, moe_configs(parts, **moe_values), perturbation=perturbation)
    save(model, processor, folder)
    return folder


def draw(seed: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    """A picture of a coloured box on another colour."""
    picture = Image.new("RGB", size, (seed * 67 % 256, seed * 31 % 256, 90))
    ImageDraw.Draw(picture).rectangle((2, 2, 4 + seed % 10, 8), fill=(200, seed * 13 % 256, 20))
    return picture


def make_row(index: int, picture: bool = True) -> dict[str, Any]:
    """A LLaVA row of 1 + index % 3 turns; rows 0, 3, 6, 9 are of one length."""
    row: dict[str, Any] = {"id": f"row-{index}", "conversations": []}
    for turn in range(1 + index % 3):
        question = f"What is box {index} at turn {turn}?"
        if turn == 0 and picture:
            question = f"<image>\n{question}"
            row["image"] = f"{index}.png"
        row["conversations"] += [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"Box {index * (turn + 1)}."},
        ]
    return row


def write_rows(
    folder: Path, n: int = 6, text_only: Collection[int] = (), name: str = "rows.json"
) -> tuple[Path, Path]:
    """A LLaVA file of ``n`` rows of 1 to 3 turns, and its image folder; indices without picture."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = [make_row(index, index not in text_only) for index in range(n)]
    for index, row in enumerate(rows):
        if "image" in row:
            draw(index).save(images / row["image"])
    file = folder / name
    lines = (json.dumps(row) for row in rows)
    file.write_text("\n".join(lines) if file.suffix == ".jsonl" else json.dumps(rows))
    return file, images


def make_batch(
    processor: LlavaProcessor, indices: Collection[int], text_only: Collection[int] = ()
) -> dict[str, torch.Tensor]:
    """The collated rows of those indices."""
    samples = []
    for index in indices:
        picture = index not in text_only
        messages = to_messages(make_row(index, picture))
        samples.append(encode(processor, messages, [draw(index)] if picture else []))
    return Collator(processor)(samples)


def answer_count(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens that a loss is taken of."""
    return (batch["labels"] != IGNORED).sum()


def compete(
    model: LlavaCompeteForConditionalGeneration, competing: bool
) -> LlavaCompeteForConditionalGeneration:
    """The model in training mode, with every MoE layer competing or none."""
    model.set_competing([competing] * sum(map(len, model.moe_layers().values())))
    return model.train()


def say(*turns: Any, **more: Any) -> dict[str, Any]:
    """A row whose turns alternate, human first."""
    speakers = ("human", "gpt")
    values = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": "row-7", "conversations": values, **more}
