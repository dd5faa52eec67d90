"""LLaVA of transformers against ours of the same weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration

from llava_compete import LlavaCompeteConfig, load
from llava_compete.__main__ import main
from llava_compete.checkpoint import upcycle_model
from llava_compete.foreign.hf_llava import hf_llava_rules, import_hf_llava
from llava_compete.foreign.imported import build, import_state
from llava_compete.foreign.towers import describe
from tests import tiny
from tests.foreign.llava import built, largest_difference, make_hf_llava

TOLERANCE = 3e-6  # of the largest logit


@pytest.mark.parametrize(
    ("tower", "family", "layer"),
    [
        ("clip", "llama", -2),
        ("clip", "llama", -1),
        ("clip", "llama", 1),
        ("clip_gelu", "mistral", -2),
        ("siglip", "qwen2", -2),
        ("siglip", "phi3", -1),
    ],
)
def test_logits_equal_transformers(tmp_path, tower, family, layer):
    theirs = make_hf_llava(tmp_path, tower, family, vision_feature_layer=layer)
    ours = built(import_hf_llava(tmp_path), tmp_path)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    assert largest_difference(theirs, ours, picture=False) < TOLERANCE


@pytest.mark.parametrize("layer", [-3, -1, 2])
def test_another_layer_is_another_feature(tmp_path, layer):
    theirs = make_hf_llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_feature_layer": layer}))
    ours = built(import_hf_llava(tmp_path), tmp_path)
    same_block = layer == 2  # hidden_states[2] of 3 blocks is hidden_states[-2]
    assert (largest_difference(theirs, ours, picture=True) < TOLERANCE) == same_block


def test_quick_gelu_and_the_exact_one_are_told_apart(tmp_path):
    theirs = make_hf_llava(tmp_path, "clip")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = built(import_hf_llava(tmp_path), tmp_path)
    assert largest_difference(theirs, ours, picture=True) > 100 * TOLERANCE


def test_both_spellings_of_the_keys_are_read(tmp_path):
    theirs = make_hf_llava(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert any(key.startswith("language_model.model.layers") for key in on_disk)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = built(import_hf_llava(tmp_path), tmp_path)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


@pytest.mark.parametrize("head", ["absent", "equal", "other"])
def test_a_tied_head_may_be_in_the_file_if_it_is_equal(tmp_path, head):
    theirs = make_hf_llava(tmp_path, text={"tie_word_embeddings": True})
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    embeddings = next(value for key, value in state.items() if key.endswith("embed_tokens.weight"))
    if head == "absent":
        assert not any(key.endswith("lm_head.weight") for key in state)
    else:
        state["language_model.lm_head.weight"] = embeddings + (head == "other")
        save_file(state, file)
    if head == "other":
        with pytest.raises(ValueError, match="lm_head differs from the embeddings"):
            import_hf_llava(tmp_path)
        return
    ours = built(import_hf_llava(tmp_path), tmp_path)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


def test_the_report_names_every_key(tmp_path):
    theirs = make_hf_llava(tmp_path)
    report = import_hf_llava(tmp_path).report
    assert len(report.used) + len(report.dropped) == len(theirs.state_dict())
    assert all("layers.2." in key or "post_layernorm" in key for key in report.dropped)
    assert not report.unused
    assert not report.missing
    assert not report.faults


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(extra=torch.ones(1)), "1 unused: extra"),
        (
            lambda state: state.pop("multi_modal_projector.linear_1.bias"),
            r"1 missing: projector\.linear_1\.bias",
        ),
        (
            lambda state: state.update({"language_model.model.norm.weight": torch.ones(4)}),
            r"language_model\.model\.norm\.weight is \[4\], the model has \[32\]",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
    make_hf_llava(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        import_hf_llava(tmp_path)


@pytest.mark.parametrize(
    ("tower", "values", "words"),
    [
        ("clip", {"vision_feature_layer": [-2, -1]}, "features of one layer"),
        ("clip", {"vision_feature_layer": 0}, "vision_feature_layer=0 must name the output"),
        ("clip", {"vision_feature_select_strategy": "full"}, "only 'default'"),
        ("siglip", {"vision_feature_select_strategy": "default"}, "only 'full'"),
        ("clip", {"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ("clip", {"multimodal_projector_bias": False}, "multimodal_projector_bias=False"),
    ],
)
def test_what_ours_does_not_compute_is_refused(tmp_path, tower, values, words):
    make_hf_llava(tmp_path, tower, **values)
    with pytest.raises(ValueError, match=words):
        import_hf_llava(tmp_path)


def test_the_image_processor_of_the_source_is_kept_where_ours_has_a_choice(tmp_path):
    make_hf_llava(tmp_path)
    values = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "crop_size": {"height": 16, "width": 16},
        "size": {"shortest_edge": 16},
        "do_center_crop": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(values))
    vision = import_hf_llava(tmp_path).config.vision
    assert (vision.mean, vision.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for name, value in (("resample", 2), ("size", {"shortest_edge": 8}), ("rescale_factor", 1)):
        file.write_text(json.dumps({**values, "do_center_crop": False, name: value}))
        with pytest.raises(ValueError, match=f"{name} is"):
            import_hf_llava(tmp_path)


def test_an_imported_model_is_upcycled_with_its_output(tmp_path):
    theirs = make_hf_llava(tmp_path)
    ours, _ = build(import_hf_llava(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    upcycle_model(ours, tiny.moe_configs(("language_model", "projector", "vision")))
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


def test_llava_1_5_7b_in_full_size_has_the_tensors_that_ours_wants():
    """Shapes alone, on the meta device."""
    config = LlavaConfig()
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config)
    tower = config.vision_config
    ours = LlavaCompeteConfig(
        text_config=config.text_config, vision_config=describe("clip", tower, -2).to_dict()
    )
    mapped = import_state(ours, theirs.state_dict(), hf_llava_rules(tower, -2), source="7b")
    assert len(mapped.report.used) + len(mapped.report.dropped) == len(theirs.state_dict())
    assert mapped.config.vision.num_patches == 576


def test_the_verb_makes_a_checkpoint_that_loads_and_answers(tmp_path, capsys):
    theirs = make_hf_llava(tmp_path / "source")
    main(["import", str(tmp_path / "source"), str(tmp_path / "ours")])
    assert "LLaVA in transformers' layout" in capsys.readouterr().out
    ours, processor = load(tmp_path / "ours")
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    lines = (tmp_path / "ours" / "import_report.txt").read_text().splitlines()
    assert len(lines) == len(load_file(tmp_path / "source" / "model.safetensors"))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.startswith("A chat between a curious user")
    assert text.endswith("USER: <image>\nHi ASSISTANT:")


def test_the_verb_refuses_flags_of_other_layouts_and_unknown_folders(tmp_path):
    make_hf_llava(tmp_path / "source")
    output = str(tmp_path / "ours")
    with pytest.raises(SystemExit, match="which takes no --top_k"):
        main(["import", str(tmp_path / "source"), output, "--top_k", "2"])
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        main(["import", str(tmp_path), output])
    tiny.make_language_model(tmp_path / "lm")
    with pytest.raises(SystemExit, match="has model_type 'llama' and neither"):
        main(["import", str(tmp_path / "lm"), output])
    assert not (tmp_path / "ours").exists()
