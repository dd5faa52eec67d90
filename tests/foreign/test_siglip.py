"""A SigLIP tower of transformers against ours of the same weights; 3 blocks, width 32."""

import pytest
import torch
from torch.testing import assert_close
from transformers import SiglipVisionConfig, SiglipVisionModel

from llava_compete.foreign.keys import map_keys
from llava_compete.foreign.siglip import siglip_rules, siglip_vision
from llava_compete.vision import ImageTower


def make_siglip(activation="gelu_pytorch_tanh", **values):
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=43,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        hidden_act=activation,
        **values,
    )
    torch.manual_seed(0)
    model = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh biases and norms are all alike
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return config, model


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("layer", [-2, -1, "final"])
def test_features_equal_transformers(layer, activation):
    config, theirs = make_siglip(activation)
    vision = siglip_vision("tiny", config, layer)
    ours = ImageTower(vision).eval()
    wanted = {f"vision.{key}": value.shape for key, value in ours.state_dict().items()}
    mapped = map_keys(
        theirs.state_dict(), siglip_rules("(?:vision_model[.])?", config, layer), wanted
    )
    ours.load_state_dict({key.removeprefix("vision."): v for key, v in mapped.tensors.items()})
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        outputs = theirs(pixels, output_hidden_states=True)
        features = outputs.last_hidden_state if layer == "final" else outputs.hidden_states[layer]
        assert_close(ours(pixels), features, atol=2e-6, rtol=2e-6)
        assert ours(pixels).shape == (2, vision.num_patches, vision.width)


def test_the_two_gelus_are_told_apart():
    config, theirs = make_siglip("gelu_pytorch_tanh")
    towers = []
    for activation in ("gelu_pytorch_tanh", "gelu"):
        config.hidden_act = activation
        tower = ImageTower(siglip_vision("tiny", config, -2)).eval()
        mapped = map_keys(theirs.state_dict(), siglip_rules("(?:vision_model[.])?", config, -2))
        tower.load_state_dict({key.removeprefix("vision."): v for key, v in mapped.tensors.items()})
        towers.append(tower)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        difference = (towers[0](pixels) - towers[1](pixels)).abs().max()
    assert difference > 1e-5


def test_what_timm_does_not_have_is_refused():
    config, _ = make_siglip("relu")
    with pytest.raises(ValueError, match="hidden_act='relu' is not one of"):
        siglip_vision("tiny", config, -2)
    config, _ = make_siglip(layer_norm_eps=1e-5)
    with pytest.raises(ValueError, match=r"layer_norm_eps=1e-05 must be 1e-06"):
        siglip_vision("tiny", config, -2)
