"""Several scales against a plain loop over crops and patches."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete import load, save
from llava_compete.multiscale import check_scales, count_crops, cut, put_together
from llava_compete.processor import prompt_batch
from llava_compete.vision import ImageTower, VisionConfig, describe_tower
from tests import tiny

SIZE, SIDE, WIDTH = 6, 3, 5


def loop(tower, pixels_N3HW, scales):
    """Each crop of each image on its own through ``tower``: (M, 3, H, W) -> (M, P, V)."""
    size = pixels_N3HW.shape[-1]
    images = []
    for picture in pixels_N3HW:
        by_scale = []
        for scale in scales:
            large = F.interpolate(
                picture[None], size=scale * size, mode="bicubic", align_corners=False
            )[0]
            side = round(tower(picture[None]).shape[1] ** 0.5)
            features = {}  # (row, column) on the large map -> V
            for row in range(scale):
                for column in range(scale):
                    top, left = row * size, column * size
                    crop = large[:, top : top + size, left : left + size]
                    for patch, value in enumerate(tower(crop[None])[0]):
                        place = row * side + patch // side, column * side + patch % side
                        features[place] = value
            pooled = []
            for row in range(side):
                for column in range(side):
                    window = [
                        features[scale * row + i, scale * column + j]
                        for i in range(scale)
                        for j in range(scale)
                    ]
                    pooled.append(torch.stack(window).mean(dim=0))
            by_scale.append(torch.stack(pooled))
        images.append(torch.cat(by_scale, dim=-1))
    return torch.stack(images)


def patch_tower(seed=0):
    """A tower of one map of each 2 x 2 patch: SIZE pixels, SIDE x SIDE patches, WIDTH features."""
    weight = torch.randn(WIDTH, 3, 2, 2, generator=torch.Generator().manual_seed(seed))

    def tower(pixels_M3HW):
        return F.conv2d(pixels_M3HW, weight, stride=2).tanh().flatten(2).transpose(1, 2)

    return tower


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 3), (1, 2, 3)])
def test_features_equal_the_loop(scales):
    tower, pixels = patch_tower(), torch.randn(2, 3, SIZE, SIZE)
    crops = cut(pixels, scales)
    assert crops.shape == (2 * count_crops(scales), 3, SIZE, SIZE)
    features_NPV = put_together(tower(crops), scales)
    assert features_NPV.shape == (2, SIDE**2, WIDTH * len(scales))
    assert_close(features_NPV, loop(tower, pixels, scales))


@pytest.mark.parametrize("make", [tiny.make_tower, tiny.make_timm_tower])
def test_a_tower_at_several_scales_equals_the_loop_over_the_tower_at_one(tmp_path, make):
    config, _ = make(tmp_path, scales=(1, 3))
    tower = ImageTower(config).eval()
    plain = ImageTower(dataclasses.replace(config, scales=(1,))).eval()
    plain.load_state_dict(tower.state_dict())
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        features_NPV = tower(pixels)
        assert features_NPV.shape == (2, config.num_patches, config.width)
        assert_close(features_NPV, loop(plain, pixels, (1, 3)), atol=1e-4, rtol=1e-4)
        assert_close(features_NPV[..., : config.width // 2], plain(pixels), atol=1e-5, rtol=1e-5)


def test_one_scale_is_the_tower_to_the_bit():
    pixels, features = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 7, WIDTH)
    assert torch.equal(cut(pixels, (1,)), pixels)
    assert torch.equal(put_together(features, (1,)), features)  # of no square grid


def test_all_crops_go_through_the_trunk_in_one_call(tmp_path):
    config, _ = tiny.make_tower(tmp_path, scales=(1, 3))
    tower, calls = ImageTower(config), []
    tower.trunk.conv1.register_forward_pre_hook(lambda conv, args: calls.append(len(args[0])))
    tower(torch.randn(2, 3, config.image_size, config.image_size))
    assert calls == [2 * (1 + 9)]


def test_gradients_reach_the_features_of_every_crop_alike():
    features = torch.randn(1 + 9, SIDE**2, WIDTH, requires_grad=True)
    put_together(features, (1, 3)).sum().backward()
    assert_close(features.grad[0], torch.ones(SIDE**2, WIDTH))
    assert_close(features.grad[1:], torch.full((9, SIDE**2, WIDTH), 1 / 9))


def test_bfloat16_is_interpolated_and_averaged_in_float32():
    pixels = torch.randn(1, 3, SIZE, SIZE).bfloat16()
    assert torch.equal(cut(pixels, (1, 3)), cut(pixels.float(), (1, 3)).bfloat16())
    features = torch.randn(10, SIDE**2, WIDTH).bfloat16()
    wanted = put_together(features.float(), (1, 3)).bfloat16()
    assert torch.equal(put_together(features, (1, 3)), wanted)


def test_describing_a_tower_at_scales_widens_it_and_keeps_its_patches():
    plain, three = (describe_tower("ViT-SO400M-14-SigLIP", scales=s) for s in ((1,), (1, 3)))
    assert (plain.num_patches, plain.width) == (256, 1152)
    assert (three.num_patches, three.width) == (256, 2304)
    assert VisionConfig(**three.to_dict()) == three
    old = {key: value for key, value in plain.to_dict().items() if key != "scales"}
    assert VisionConfig(**old) == plain  # a config.json written before there were scales


@pytest.mark.parametrize(
    "scales", [(), (3,), (1, 1), (1, 3, 2), (1, 0), (1, -1), (1, 2.5), (True,)]
)
def test_scales_that_are_no_growing_whole_numbers_from_one_are_refused(scales):
    with pytest.raises(ValueError, match=r"scales=.* must be whole numbers that begin with 1"):
        check_scales(scales, 4)


def test_patches_that_are_no_square_grid_are_refused_at_more_than_one_scale():
    check_scales((1,), 6)
    with pytest.raises(
        ValueError, match=r"scales=\[1, 2\] need a tower whose patches are a sq.* 6"
    ):
        check_scales((1, 2), 6)


def test_a_model_with_scales_generates_alike_after_a_save(tmp_path):
    model, processor = tiny.compose_tiny(tmp_path / "parts", scales=(1, 3))
    save(model, processor, tmp_path / "out")
    loaded, again = load(tmp_path / "out")
    assert loaded.config.vision.scales == (1, 3)
    assert loaded.projector.linear_1.in_features == 2 * 32
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    batch = prompt_batch(again, [[{"role": "user", "content": content}]], [[tiny.draw(1)]])
    ids = [m.generate(**batch, max_new_tokens=4, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*ids)
