"""The tiny tower has 3 blocks; "the whole tower" is open_clip's own, built of the same weights."""

import dataclasses
import json

import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from llava_compete.vision import ImageTower, VisionConfig, describe_tower, load_tower
from tests import tiny


@pytest.fixture
def tower_files(tmp_path):
    return tiny.make_tower(tmp_path)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)


def whole_tower(config, weights):
    whole = _build_vision_tower(config.embed_dim, dict(config.tower), config.quick_gelu)
    state = load_file(weights)
    whole.load_state_dict({k.removeprefix("visual."): v for k, v in state.items()})
    return whole.eval()


@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_features_are_the_patches_after_the_named_block_of_the_whole_tower(tmp_path, pixels, layer):
    config, weights = tiny.make_tower(tmp_path, layer)
    whole, seen = whole_tower(config, weights), []
    block = whole.transformer.resblocks[layer]
    block.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        whole(pixels)
        features_NPV = load_tower(config, str(weights)).eval()(pixels)
    (tokens,) = seen  # the class token first
    assert tokens.shape == (2, 1 + tiny.NUM_PATCHES, 32)
    assert_close(features_NPV, tokens[:, 1:])


def test_final_features_are_normalised_and_without_the_class_token(tmp_path, pixels):
    config, weights = tiny.make_tower(tmp_path, "final")
    whole, seen = whole_tower(config, weights), []
    whole.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        whole(pixels)
        features_NPV = load_tower(config, str(weights)).eval()(pixels)
        assert_close(features_NPV, whole.ln_post(seen[0])[:, 1:])


@pytest.mark.parametrize(("layer", "blocks"), [(-2, 2), (-3, 1), (-1, 3), (0, 1), ("final", 3)])
def test_blocks_behind_the_one_used_are_not_built(tmp_path, layer, blocks):
    config, weights = tiny.make_tower(tmp_path, layer)
    assert len(load_tower(config, str(weights)).trunk.transformer.resblocks) == blocks


def test_measured_shape_is_the_shape_of_the_features(tower_files, pixels):
    config, weights = tower_files
    assert (config.num_patches, config.width, config.patch_size) == (4, 32, 8)
    assert load_tower(config, str(weights))(pixels).shape == (2, 4, 32)


def test_another_image_size_gives_another_number_of_patches(tower_files):
    config = describe_tower(
        tiny.TOWER_NAME, -2, image_size=24, mean=tiny.MEAN, std=tiny.STD, quick_gelu=False
    )
    assert (config.image_size, config.num_patches, config.patch_size) == (24, 9, 8)
    assert ImageTower(config)(torch.randn(1, 3, 24, 24)).shape == (1, 9, 32)


@pytest.mark.parametrize(
    ("name", "values", "patches", "width"),
    [
        ("ViT-L-14-336", {"pretrained": "openai"}, 576, 1024),
        ("ViT-B-16-SigLIP", {}, 196, 768),
        ("ViT-SO400M-14-SigLIP-384", {}, 729, 1152),
        ("timm/vit_base_patch16_siglip_224", {}, 196, 768),
        ("timm/resnet18", {"layer": "final"}, 49, 512),
    ],
)
def test_published_names_have_their_known_shapes(name, values, patches, width):
    config = describe_tower(name, **values)
    assert (config.num_patches, config.width) == (patches, width)
    with torch.device("meta"):
        size = config.image_size
        assert ImageTower(config)(torch.zeros(1, 3, size, size)).shape == (1, patches, width)


def test_pixel_statistics_are_those_of_the_family():
    clip = describe_tower("ViT-L-14-336", pretrained="openai")
    assert clip.quick_gelu
    assert clip.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    siglip = describe_tower("ViT-B-16-SigLIP")
    assert not siglip.quick_gelu
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5)


def test_what_is_given_wins_over_what_is_published():
    config = describe_tower("ViT-B-16-SigLIP", mean=(0.1, 0.2, 0.3))
    assert config.mean == (0.1, 0.2, 0.3)
    assert config.std == (0.5, 0.5, 0.5)


def test_weights_that_differ_in_their_statistics_ask_for_a_tag():
    with pytest.raises(ValueError, match="ViT-B-16: its published weights differ in mean std"):
        describe_tower("ViT-B-16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-L-14-337", r"open_clip has no model 'ViT-L-14-337'; did you mean ViT-L-14-336"),
        ("timm/resnet181", r"timm has no model 'resnet181'; did you mean"),
    ],
)
def test_an_unknown_tower_is_refused_with_the_nearest_names(name, message):
    with pytest.raises(ValueError, match=message):
        describe_tower(name)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_block_that_is_not_there_is_refused(tower_files, layer):
    with pytest.raises(ValueError, match=f"{tiny.TOWER_NAME}: no features from layer {layer}"):
        describe_tower(tiny.TOWER_NAME, layer, mean=tiny.MEAN, std=tiny.STD, quick_gelu=False)


def test_json_round_trip_gives_an_equal_config(tower_files):
    config, _ = tower_files
    assert VisionConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("suffix", "wrapped"),
    [(".safetensors", False), (".pt", False), (".pt", True), (".pth", False), (".bin", False)],
)
@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_weight_files_of_every_kind_load_alike(tmp_path, tower_files, suffix, prefix, wrapped):
    config, weights = tower_files
    state = {
        f"{prefix}{key.removeprefix('visual.')}": value for key, value in load_file(weights).items()
    }
    state["transformer.text_side"] = torch.zeros(3)  # of the text tower: left unread
    file = tmp_path / f"other{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state} if wrapped else state, file)
    wanted = load_tower(config, str(weights)).state_dict()
    for key, value in load_tower(config, str(file)).state_dict().items():
        assert torch.equal(value, wanted[key]), key


def test_missing_weights_are_refused_by_name(tmp_path, tower_files):
    config, weights = tower_files
    state = load_file(weights)
    del state["visual.conv1.weight"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors .*\['conv1.weight'\]"):
        load_tower(config, str(tmp_path / "broken.safetensors"))


def test_weights_that_are_neither_a_file_nor_a_tag_are_refused(tower_files):
    config, _ = tower_files
    with pytest.raises(ValueError, match="'nowhere' of tiny-vit is neither a file nor a published"):
        load_tower(config, "nowhere")


def test_a_pickle_that_would_run_code_is_not_read(tmp_path, tower_files):
    torch.save({"state_dict": dataclasses.replace}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt cannot be read as weights.*[Ww]eights"):
        load_tower(tower_files[0], str(tmp_path / "evil.pt"))


def test_a_frozen_tower_stays_in_evaluation_mode(tower_files):
    tower = load_tower(tower_files[0], str(tower_files[1]))
    assert tower.train().trunk.training
    tower.requires_grad_(False)
    assert not any(module.training for module in tower.train().modules())


@pytest.mark.parametrize("trained", [True, False])
def test_batch_norm_statistics_never_move(trained):
    config = describe_tower("timm/test_resnet", "final", image_size=64)
    tower = ImageTower(config).requires_grad_(trained)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    assert any("running_mean" in key for key in before)
    features = tower.train()(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, config.num_patches, config.width)
    for key, value in tower.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_picture_does_not_depend_on_the_others_of_its_batch():
    config = describe_tower("timm/test_resnet", "final", image_size=64)
    tower, pixels = ImageTower(config).train(), torch.randn(3, 3, 64, 64)
    assert_close(tower(pixels)[:1], tower(pixels[:1]))


def test_patches_of_a_convolutional_tower_are_read_row_by_row():
    config = describe_tower("timm/test_resnet", "final", image_size=64)
    tower, pixels = ImageTower(config).eval(), torch.randn(1, 3, 64, 64)
    grid_1Vhw = tower.trunk.forward_features(pixels)
    side = grid_1Vhw.shape[-1]
    features_1PV = tower(pixels)
    for row in range(side):
        for column in range(side):
            assert_close(features_1PV[0, row * side + column], grid_1Vhw[0, :, row, column])
