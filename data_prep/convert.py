"""Turn the two packaged weight files into formats that transformers and timm read.

A GGUF file of a Llama model becomes a Hugging Face folder; the EfficientNet-Lite0 `.pth` becomes a
safetensors file with timm's keys.  Both conversions run once, on a CPU, and need no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gguf
    import torch
    from transformers import LlamaConfig, PreTrainedTokenizerFast

TIMM_NAME = "tf_efficientnet_lite0"

# GGUF name -> Hugging Face name of a tensor inside layer {i}.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # GGUF's token type for <|im_start|> and its like


def gguf_to_folder(gguf_file: Path, folder: Path) -> None:
    """Write float32 weights, config, generation config and a fast tokenizer to ``folder``."""
    import gguf
    from transformers import GenerationConfig, LlamaForCausalLM

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(
            f"{gguf_file} holds architecture {fields['general.architecture']!r}: "
            "only 'llama' can be converted"
        )
    config = _llama_config(fields)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(_llama_weights(reader, config), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the head is tied to the embedding
        raise ValueError(f"{gguf_file}: missing weights {missing}, unknown weights {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)
    _tokenizer(fields).save_pretrained(folder)


def _llama_config(fields: dict[str, Any]) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def _llama_weights(reader: gguf.GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    import gguf
    import torch

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.weight"
            if parts[2] in heads:
                # GGUF interleaves the two rotary halves of a head; Hugging Face keeps them apart
                num_heads = heads[parts[2]]
                split = array.reshape(num_heads, array.shape[0] // num_heads // 2, 2, -1)
                array = split.swapaxes(1, 2).reshape(array.shape)
        else:
            names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
            name = f"{names[parts[0]]}.weight"
        weights[name] = torch.from_numpy(array.astype("float32", copy=True))
    return weights


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits every digit, as SmolLM2 was trained ("smollm" in the metadata)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields["tokenizer.ggml.token_type"]
    left_right = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    merges = [(left, right) for left, right in left_right]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def lite0_to_timm(checkpoint: Path, target: Path) -> None:
    """Write the ImageNet weights of ``checkpoint`` under the keys of timm's model.

    Both state dicts list the same tensors in the same order once `num_batches_tracked` is left
    out, so the copy goes by position and each shape is checked.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    source = torch.load(checkpoint, map_location="cpu", weights_only=True)
    wanted = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    values = [value for name, value in source.items() if "num_batches_tracked" not in name]
    names = [name for name in wanted if "num_batches_tracked" not in name]
    if [value.shape for value in values] != [wanted[name].shape for name in names]:
        raise ValueError(
            f"{checkpoint}: its {len(values)} tensors do not line up with the {len(names)} of "
            f"timm's {TIMM_NAME}; was timm changed?"
        )
    weights = {name: value.contiguous() for name, value in zip(names, values, strict=True)}
    save_file(weights, target, metadata={"format": "pt"})
