"""LLaVA's own layout: the weights of a transformers model under that layout's keys."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from llava_compete import load
from llava_compete.__main__ import main
from llava_compete.foreign import towers
from llava_compete.foreign.keys import map_keys
from llava_compete.foreign.layouts import read_tokenizer
from llava_compete.foreign.original_llava import import_original_llava
from llava_compete.vision import ImageTower, VisionConfig
from tests.foreign.llava import (
    SIZES,
    TOWERS,
    built,
    largest_difference,
    make_hf_llava,
    make_tokenizer,
    make_tower,
    original_config,
    original_state,
    write_json,
)

TOLERANCE = 3e-6  # of the largest logit


@pytest.fixture
def theirs(tmp_path):
    return make_hf_llava(tmp_path / "hf")


@pytest.fixture
def tower(tmp_path, theirs):
    """The folder of the model's own tower."""
    folder = tmp_path / "tower"
    theirs.model.vision_tower.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path, theirs, tower):
    """``write(tower=False, **config)``: a folder in LLaVA's layout, pickled in one file."""

    def build(*, tower_inside=False, **values):
        folder = tmp_path / "original"
        write_json(folder / "config.json", original_config(theirs, str(tower), **values))
        state = original_state(theirs, tower=tower_inside)
        torch.save(state, folder / "pytorch_model.bin")
        make_tokenizer().save_pretrained(folder)
        return folder

    return build


def test_logits_equal_with_the_tower_by_name(theirs, tower, write):
    folder = write()
    ours = built(import_original_llava(folder, vision_weights=str(tower)), folder)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    assert largest_difference(theirs, ours, picture=False) < TOLERANCE


def test_logits_equal_with_the_tower_in_the_files(theirs, tower, write):
    folder = write(tower_inside=True)
    make_tower(tower)  # other weights: only its config.json counts
    ours = built(import_original_llava(folder), folder)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_logits_equal_in_shards(theirs, tower, write, kind):
    folder = write()
    (folder / "pytorch_model.bin").unlink()
    state = original_state(theirs, tower=False)
    names = {"safetensors": "model", "bin": "pytorch_model"}
    files = [f"{names[kind]}-{i:05d}-of-00002.{kind}" for i in (1, 2)]
    where = {key: files[index % 2] for index, key in enumerate(state)}
    for file in files:
        shard = {key: state[key] for key in state if where[key] == file}
        if kind == "bin":
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    ending = "bin" if kind == "bin" else "safetensors"
    write_json(folder / f"{names[kind]}.{ending}.index.json", index)
    ours = built(import_original_llava(folder, vision_weights=str(tower)), folder)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


def test_logits_equal_with_a_projector_alone_beside_its_language_model(
    tmp_path, theirs, tower, write
):
    folder = write()
    (folder / "pytorch_model.bin").unlink()
    state = original_state(theirs, tower=False)
    projector = {key: value for key, value in state.items() if "mm_projector" in key}
    torch.save(projector, folder / "mm_projector.bin")
    language_model = tmp_path / "lm"
    write_json(language_model / "config.json", theirs.config.text_config.to_dict())
    rest = {key: value for key, value in state.items() if key not in projector}
    save_file(rest, language_model / "model.safetensors")
    with pytest.raises(ValueError, match="a projector alone: give --language_model"):
        import_original_llava(folder, vision_weights=str(tower))
    imported = import_original_llava(
        folder, language_model=language_model, vision_weights=str(tower)
    )
    assert largest_difference(theirs, built(imported, folder), picture=True) < TOLERANCE


def test_the_image_token_gets_a_row_where_the_vocabulary_has_none(tmp_path, theirs, tower, write):
    folder = write()
    tokenizer = make_tokenizer()
    rows = theirs.config.text_config.vocab_size
    tokenizer.add_tokens([f"<{index}>" for index in range(rows - len(tokenizer) + 3)])
    tokenizer.save_pretrained(folder)
    ours = built(import_original_llava(folder, vision_weights=str(tower)), folder)
    embeddings, head = ours.get_input_embeddings().weight, ours.get_output_embeddings().weight
    assert embeddings.shape == head.shape == (len(tokenizer), 32)
    for weight in (embeddings, head):
        torch.testing.assert_close(weight[-1], weight[:rows].mean(dim=0))
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


def test_a_linear_projector(tmp_path, theirs, tower, write):
    folder = write(mm_projector_type="linear")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for key in [key for key in state if "mm_projector.2" in key]:
        del state[key]
    for name in ("weight", "bias"):
        state[f"model.mm_projector.{name}"] = state.pop(f"model.mm_projector.0.{name}")
    torch.save(state, folder / "pytorch_model.bin")
    ours = built(import_original_llava(folder, vision_weights=str(tower)), folder)
    features = torch.randn(1, 4, 32)
    wanted = torch.nn.functional.linear(
        features, state["model.mm_projector.weight"], state["model.mm_projector.bias"]
    )
    torch.testing.assert_close(ours.projector(features), wanted)


def test_the_verb_reads_the_layout_from_the_files(tmp_path, theirs, tower, write, capsys):
    folder = write()
    arguments = ["import", str(folder), str(tmp_path / "ours"), "--vision_weights", str(tower)]
    main(arguments)
    assert "LLaVA in its own layout" in capsys.readouterr().out
    ours, _ = load(tmp_path / "ours")
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE


def test_a_tower_that_is_nowhere_is_asked_for(write):
    with pytest.raises(ValueError, match="holds no image tower: give --vision_weights"):
        import_original_llava(write())
    folder = write(mm_vision_tower="somebody/tower")
    with pytest.raises(ValueError, match=r"'somebody/tower' is neither a folder nor one of"):
        import_original_llava(folder)


def test_a_published_name_gives_the_tower_its_shape(monkeypatch, tmp_path, theirs, write):
    """An open_clip file of the same weights, whose shape only the name tells."""
    config = TOWERS["clip"][0](**SIZES, **TOWERS["clip"][2])
    monkeypatch.setitem(towers.PUBLISHED, "a/clip", towers.PublishedTower("ViT-B-32", config))
    folder = write(mm_vision_tower="a/clip", tower_inside=True)
    ours = built(import_original_llava(folder), folder)
    assert largest_difference(theirs, ours, picture=True) < TOLERANCE
    weights = tmp_path / "open_clip.safetensors"
    trunk = ours.vision.trunk.state_dict()
    save_file({f"visual.{key}": value for key, value in trunk.items()}, weights)
    folder = write(mm_vision_tower="a/clip")
    again = built(import_original_llava(folder, vision_weights=str(weights)), folder)
    assert largest_difference(theirs, again, picture=True) < TOLERANCE


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres' is not one of"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type='mlp3x_gelu'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature='cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"model_type": "llava_mpt"}, "model_type='llava_mpt' is not one of"),
    ],
)
def test_what_ours_does_not_compute_is_refused(write, tower, values, words):
    folder = write(**values)
    with pytest.raises(ValueError, match=words):
        import_original_llava(folder, vision_weights=str(tower))


def test_published_towers_have_open_clips_shape():
    import open_clip

    for name, tower in towers.PUBLISHED.items():
        vision = towers.describe(name, tower.config, -2)
        registered = open_clip.get_model_config(tower.open_clip)["vision_cfg"]
        assert vision.image_size == registered["image_size"], name
        for key in {"layers", "width", "patch_size", "head_width"} & set(registered):
            assert vision.tower[key] == registered[key], name
        side = tower.config.image_size // tower.config.patch_size
        assert vision.num_patches == side**2
        assert VisionConfig(**json.loads(json.dumps(vision.to_dict()))) == vision


@pytest.mark.parametrize("name", towers.PUBLISHED)
def test_published_towers_in_full_size_have_the_tensors_that_ours_wants(name):
    """Shapes alone, on the meta device."""
    config = towers.PUBLISHED[name].config
    with torch.device("meta"):
        theirs = AutoModel.from_config(config)
        ours = ImageTower(towers.describe(name, config, -2))
    wanted = {f"vision.{key}": value.shape for key, value in ours.state_dict().items()}
    map_keys(theirs.state_dict(), towers.tower_rules(r"(?:vision_model\.)?", config, -2), wanted)


def test_a_tokenizer_that_needs_an_absent_package_says_so(monkeypatch, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install sentencepiece`, or give --tokenizer"):
        read_tokenizer(tmp_path)
