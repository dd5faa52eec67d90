"""One picture at several scales through an image tower of one size (S2, arXiv:2403.13043).

N images, C crops of an image over all scales, S a scale, H and W pixels of the tower, P patches of
a crop in a square of g x g, V feature width of the tower.

Scale 1 is the picture itself. For scale S it is enlarged bicubically to S times its size and cut
into S x S crops of the tower's size, row by row. Their features, put together to a map of
(S g) x (S g), are averaged over windows of S x S, so that a patch of scale 1 gets V more channels
from what stands at its own place. Interpolation and averages are float32 whatever the dtype.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def check_scales(scales: tuple[int, ...], num_patches: int) -> None:
    """ValueError for scales that cannot be cut into crops or put together on the patches' grid."""
    whole = all(type(scale) is int for scale in scales)
    if not whole or scales[:1] != (1,) or list(scales) != sorted(set(scales)):
        raise ValueError(
            f"scales={list(scales)} must be whole numbers that begin with 1 and grow, such as 1 3: "
            f"a picture so many times as large is cut into crops of the tower's size"
        )
    if len(scales) > 1 and math.isqrt(num_patches) ** 2 != num_patches:
        raise ValueError(
            f"scales={list(scales)} need a tower whose patches are a square grid; it has "
            f"{num_patches}: leave scales out or choose another tower"
        )


def count_crops(scales: tuple[int, ...]) -> int:
    """C, the pictures of the tower's size that an image becomes."""
    return sum(scale**2 for scale in scales)


def cut(pixels_N3HW: Tensor, scales: tuple[int, ...]) -> Tensor:
    """The crops (N*C, 3, H, W), image by image, scales in order; one crop and no change at (1,)."""
    height, width = pixels_N3HW.shape[-2:]
    crops = [pixels_N3HW[:, None]]
    for scale in scales[1:]:
        large_N3hw = F.interpolate(
            pixels_N3HW.float(), size=(scale * height, scale * width), mode="bicubic"
        ).to(pixels_N3HW.dtype)
        rows_N3SHw = large_N3hw.unflatten(2, (scale, height))
        cells_N3SHSW = rows_N3SHw.unflatten(4, (scale, width))
        crops.append(cells_N3SHSW.permute(0, 2, 4, 1, 3, 5).flatten(1, 2))
    return torch.cat(crops, dim=1).flatten(0, 1)


def put_together(features_MPV: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Features (N, P, V * scales) of the crops' features (M = N*C, P, V), channels by scale."""
    crops_NCPV = features_MPV.unflatten(0, (-1, count_crops(scales)))
    by_scale = crops_NCPV.split([scale**2 for scale in scales], dim=1)
    features = [by_scale[0][:, 0]]
    for scale, cells_NcPV in zip(scales[1:], by_scale[1:], strict=True):
        side = math.isqrt(cells_NcPV.shape[2])
        cells_NSSggV = cells_NcPV.unflatten(2, (side, side)).unflatten(1, (scale, scale))
        map_NVhw = cells_NSSggV.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        pooled_NVgg = F.avg_pool2d(map_NVhw.float(), kernel_size=scale)
        features.append(pooled_NVgg.flatten(2).transpose(1, 2).to(features_MPV.dtype))
    return torch.cat(features, dim=-1)
