"""Conversion of packaged weights, against models made here."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_prep import convert

HEADS, KV_HEADS = 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, "h", "i", "\u0120", "1", "2", "12", "hi", "\u0120hi", "!"]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order in which llama.cpp keeps the rows of q and k."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return split.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama") -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["1 2", "h i", "\u0120 hi"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    for i in range(2):
        for short, long in convert.LAYER_TENSORS.items():
            weight = state[f"model.layers.{i}.{long}.weight"]
            weight = interleave(weight, heads[short]) if short in heads else weight
            writer.add_tensor(f"blk.{i}.{short}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, llama)
    convert.gguf_to_folder(path, path.parent / "hf")
    return path.parent / "hf"


def test_a_converted_model_gives_the_logits_of_the_original(llama, folder):
    ids = torch.randint(len(TOKENS), (2, 7), generator=torch.Generator().manual_seed(0))
    converted = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, llama(ids).logits, rtol=0, atol=0)


def test_generation_ends_and_pads_with_the_tokens_of_the_metadata(folder):
    generation = LlamaForCausalLM.from_pretrained(folder).generation_config
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    assert generation.pad_token_id == 2


def test_the_tokenizer_merges_letters_but_never_digits(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("hi hi12!<|im_end|>") == [
        *("hi", "\u0120hi", "1", "2", "!", "<|im_end|>")
    ]
    assert tokenizer.decode(tokenizer("hi hi12!").input_ids) == "hi hi12!"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "hi<|im_end|>"
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")


def test_another_architecture_is_refused(llama, tmp_path):
    write_gguf(tmp_path / "other.gguf", llama, architecture="mamba")
    with pytest.raises(ValueError, match="holds architecture 'mamba'"):
        convert.gguf_to_folder(tmp_path / "other.gguf", tmp_path / "hf")


def test_lite0_weights_go_to_timm_by_position(tmp_path):
    state = timm.create_model(convert.TIMM_NAME, pretrained=False).state_dict()
    renamed = {
        name if "num_batches_tracked" in name else f"layer{i}": value
        for i, (name, value) in enumerate(state.items())
    }
    torch.save(renamed, tmp_path / "lite0.pth")
    convert.lite0_to_timm(tmp_path / "lite0.pth", tmp_path / "lite0.safetensors")
    converted = load_file(tmp_path / "lite0.safetensors")
    wanted = {name: v for name, v in state.items() if "num_batches_tracked" not in name}
    torch.testing.assert_close(converted, wanted, rtol=0, atol=0)


def test_weights_that_do_not_line_up_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "lite0.pth")
    with pytest.raises(ValueError, match="its 1 tensors do not line up"):
        convert.lite0_to_timm(tmp_path / "lite0.pth", tmp_path / "lite0.safetensors")
