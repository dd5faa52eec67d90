import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.projector import PROJECTORS, build_projector, calibrate

N, V, D = 400, 12, 16


@pytest.fixture
def features_NV():
    """Channels of very different mean and spread, one of them dead."""
    features = torch.randn(N, V) * torch.logspace(-1, 2, V) + torch.linspace(-30, 30, V)
    features[:, 5] = 3.0
    return features


@pytest.mark.parametrize("kind", PROJECTORS)
def test_leading_dimensions_are_kept(kind):
    assert build_projector(kind, V, D)(torch.randn(2, 3, V)).shape == (2, 3, D)


def test_mlp2x_gelu_is_linear_gelu_linear():
    projector, x = build_projector("mlp2x_gelu", V, D), torch.randn(5, V)
    hidden = F.gelu(x @ projector.linear_1.weight.T + projector.linear_1.bias)
    assert_close(projector(x), hidden @ projector.linear_2.weight.T + projector.linear_2.bias)


def test_an_unknown_projector_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"projector='mlp2_gelu' is not known.*mlp2x_gelu"):
        build_projector("mlp2_gelu", V, D)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_calibrated_projector_begins_with_the_asked_spread_and_mean_zero(kind, features_NV):
    projector = build_projector(kind, V, D)
    calibrate(projector, features_NV, output_std=0.02)
    output_ND = projector(features_NV)
    assert_close(output_ND.mean(dim=0), torch.zeros(D), atol=1e-4, rtol=0)
    assert_close(output_ND.std(dim=0).mean(), torch.tensor(0.02), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_calibration_is_the_same_map_on_standardised_features(kind, features_NV):
    """Up to the scale and shift of its output, which the language model's embeddings set."""
    projector = build_projector(kind, V, D)
    std_V = features_NV.std(dim=0).clamp(min=1e-3)
    standard_ND = projector((features_NV - features_NV.mean(dim=0)) / std_V)
    calibrate(projector, features_NV, output_std=1.0)
    wanted_ND = (standard_ND - standard_ND.mean(dim=0)) / standard_ND.std(dim=0).mean()
    assert_close(projector(features_NV), wanted_ND, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_calibration_adds_nothing_to_the_architecture(kind, features_NV):
    projector = build_projector(kind, V, D)
    names = list(projector.state_dict())
    calibrate(projector, features_NV, output_std=1.0)
    assert list(projector.state_dict()) == names
    assert all(parameter.isfinite().all() for parameter in projector.parameters())
