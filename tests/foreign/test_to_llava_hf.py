"""What is written for transformers' LLaVA answers as our model does."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava_compete import save
from llava_compete.__main__ import main
from llava_compete.checkpoint import upcycle_model
from llava_compete.foreign.hf_llava import import_hf_llava
from llava_compete.foreign.imported import build
from llava_compete.foreign.to_llava_hf import save_llava_hf
from tests import tiny
from tests.foreign.llava import largest_difference, make_hf_llava, make_random

TOLERANCE = 3e-6  # of the largest logit


def make_ours(folder, tower="clip", family="llama", **text):
    make_hf_llava(folder, tower, family, text=text)
    return build(import_hf_llava(folder), AutoTokenizer.from_pretrained(folder))


def exported(model, processor, folder):
    save_llava_hf(model, processor, folder)
    loaded, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return loaded.eval()


@pytest.mark.parametrize(
    ("tower", "family"),
    [("clip", "llama"), ("clip_gelu", "mistral"), ("siglip", "qwen3"), ("clip", "phi3")],
)
def test_a_dense_model_comes_back_with_its_logits(tmp_path, tower, family):
    ours, processor = make_ours(tmp_path / "source", tower, family)
    theirs = exported(ours, processor, tmp_path / "exported")
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    again, _ = build(import_hf_llava(tmp_path / "exported"), processor.tokenizer)
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_tied_ends_stay_tied(tmp_path):
    ours, processor = make_ours(tmp_path / "source", tie_word_embeddings=True)
    theirs = exported(ours, processor, tmp_path / "exported")
    assert theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


@pytest.mark.parametrize("router", ["topk", "compete"])
@pytest.mark.parametrize(
    ("family", "layers"), [("llama", None), ("mistral", None), ("qwen3", None), ("qwen3", [1])]
)
def test_experts_of_the_language_model_come_back_with_their_logits(
    tmp_path, family, layers, router
):
    ours, processor = make_ours(tmp_path / "source", "clip", family)
    configs = tiny.moe_configs(["language_model"], router=router, layers=layers)
    upcycle_model(ours, configs, perturbation=0.5)
    for layer in ours.moe_layers()["language_model"]:
        make_random(layer.router)
    theirs = exported(ours, processor, tmp_path / "exported")
    kind = {"qwen3": "qwen3_moe"}.get(family, "mixtral")
    assert theirs.config.text_config.model_type == kind
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    assert largest_difference(theirs, ours, picture=False) < TOLERANCE


def test_transformers_answers_a_picture_as_ours_does(tmp_path):
    ours, processor = make_ours(tmp_path / "source")
    theirs = exported(ours, processor, tmp_path / "exported")
    their_processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    image = {"type": "image", "image": tiny.draw(3)}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    batches = [
        each.apply_chat_template(
            [messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"add_special_tokens": False},
        )
        for each in (processor, their_processor)
    ]
    for name, value in batches[0].items():
        assert_close(batches[1][name], value, rtol=0, atol=0)
    with torch.no_grad():
        wanted = ours(**{k: batches[0][k] for k in ("input_ids", "pixel_values")}).logits
        found = theirs(**batches[1]).logits
        answer = theirs.generate(**batches[1], max_new_tokens=4, do_sample=False)
        ours_says = ours.generate(**batches[0], max_new_tokens=4, do_sample=False)
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert answer[0, batches[1]["input_ids"].shape[1] :].tolist() == ours_says[0].tolist()


@pytest.mark.parametrize(
    ("family", "parts", "values", "words"),
    [
        ("llama", ["projector"], {}, r"experts in \['projector'\]"),
        ("llama", ["language_model"], {"layers": [1]}, r"layers \[0\] are dense: Mixtral"),
        ("llama", ["language_model"], {"router": "sigmoid"}, "router=sigmoid"),
        ("qwen2", ["language_model"], {}, "a qwen2 with experts has no form"),
        ("phi3", ["language_model"], {}, "a phi3 with experts has no form"),
    ],
)
def test_what_transformers_has_no_place_for_is_refused(tmp_path, family, parts, values, words):
    ours, processor = make_ours(tmp_path / "source", "clip", family)
    upcycle_model(ours, tiny.moe_configs(parts, **values))
    with pytest.raises(ValueError, match=words):
        save_llava_hf(ours, processor, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_tower_at_two_scales_and_one_with_a_class_token_are_refused(tmp_path):
    ours, processor = tiny.compose_tiny(tmp_path / "scales", scales=(1, 3))
    with pytest.raises(ValueError, match=r"at scales \[1, 3\]"):
        save_llava_hf(ours, processor, tmp_path / "exported")
    ours, processor = tiny.compose_tiny(tmp_path / "timm", make=tiny.make_timm_tower)
    with pytest.raises(ValueError, match=r"vision\.trunk\.cls_token"):
        save_llava_hf(ours, processor, tmp_path / "exported")


def test_the_verb_export_writes_it_in_the_dtype_asked_for(tmp_path):
    ours, processor = make_ours(tmp_path / "source")
    upcycle_model(ours, tiny.moe_configs(["language_model"]), perturbation=0.5)
    save(ours, processor, tmp_path / "ours")
    for dtype in ("float32", "bfloat16"):
        output = tmp_path / dtype
        main(
            [
                "export",
                str(tmp_path / "ours"),
                str(output),
                "--format",
                "llava_hf",
                "--dtype",
                dtype,
            ]
        )
        theirs = LlavaForConditionalGeneration.from_pretrained(output)
        assert {str(value.dtype) for value in theirs.state_dict().values()} == {f"torch.{dtype}"}
        if dtype == "float32":
            assert largest_difference(theirs.eval(), ours, picture=True) < TOLERANCE


def test_attention_with_biases_is_not_carried_over(tmp_path):
    ours, processor = make_ours(tmp_path / "source", attention_bias=True)
    upcycle_model(ours, tiny.moe_configs(["language_model"]))
    with pytest.raises(ValueError, match="attention_bias=True is not carried over"):
        save_llava_hf(ours, processor, tmp_path / "exported")
