"""Counts against arithmetic on the published sizes, and against models of real weights."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_compete import save, upcycle_model
from llava_compete.checkpoint import count_parameters
from llava_compete.count import NAMED, WEIGHTED, count, read_model
from llava_compete.model import LlavaCompeteConfig
from llava_compete.moe.upcycle import PARTS
from llava_compete.vision import describe_tower
from tests import tiny

V, V_FFN, V_TOKENS = 1152, 4304, 10 * 256  # SigLIP so400m; crops of scales 1 and 3, no class token
D, D_FFN, LAYERS, VOCABULARY = 3072, 8192, 32, 32064  # Phi-3.5-mini
E, K = 4, 2

TOWER_FFN = 2 * V * V_FFN + V_FFN + V
TOWER_REST = 4 * (V * V + V) + 4 * V  # attention with biases, two layer norms
TOWER_STEM = (3 * 14 * 14 + 1) * V + 256 * V
PROJECTOR = (2 * V + 1) * D + (D + 1) * D
DECODER_FFN = 3 * D * D_FFN
DECODER = LAYERS * (4 * D * D + DECODER_FFN + 2 * D) + D


@cache
def counted(name):
    return count(read_model(name))


def test_the_papers_model_has_5_1_billion_parameters():
    counts = counted("paper")
    blocks = 27 * (TOWER_REST + E * TOWER_FFN + E * V)
    assert counts["vision"].total == TOWER_STEM + blocks
    assert counts["projector"].total == E * PROJECTOR + E * 2 * V
    assert counts["language_model"].total == DECODER + 2 * VOCABULARY * D == 3_821_079_552
    assert round(counts["all"].total / 1e9, 1) == 5.1


def test_without_the_block_that_is_not_used_the_papers_model_still_has_5_1_billion():
    paper, used = counted("paper"), counted("paper_used")
    block = TOWER_REST + E * TOWER_FFN + E * V
    assert paper["all"].total - used["all"].total == block
    assert round(used["all"].total / 1e9, 1) == 5.1


def test_the_design_cards_model_has_four_ffns_in_each_decoder_layer():
    counts, dense = counted("design_card"), counted("dense")
    more = LAYERS * ((E - 1) * DECODER_FFN + E * D)
    assert counts["language_model"].total == dense["language_model"].total + more
    assert counts["vision"] == dense["vision"]
    assert counts["projector"] == dense["projector"]
    met = LAYERS * ((K - 1) * DECODER_FFN + E * D)
    assert counts["all"].text_token == dense["all"].text_token + met


def test_tokens_meet_k_experts_the_head_or_the_tower():
    counts = counted("paper")
    text, image = DECODER + D * VOCABULARY + D, DECODER
    assert (counts["all"].text_token, counts["language_model"].image_token) == (text, image)
    tower = TOWER_STEM + 27 * (TOWER_REST + K * TOWER_FFN + E * V)
    assert counts["vision"].image_token == tower
    assert counts["projector"].image_token == K * PROJECTOR + E * 2 * V
    assert counts["vision"].text_token == counts["projector"].text_token == 0


def test_flops_are_two_for_each_weight_that_is_applied():
    counts = counted("paper")
    block = 4 * V * V + K * 2 * V * V_FFN + E * V
    assert counts["vision"].flops_picture == 2 * V_TOKENS * (3 * 14 * 14 * V + 27 * block)
    projector = K * (2 * V * D + D * D) + E * 2 * V
    assert counts["projector"].flops_picture == 2 * 256 * projector
    layer = 4 * D * D + DECODER_FFN
    language = counts["language_model"]
    assert language.flops_text_token == 2 * (LAYERS * layer + VOCABULARY * D)
    assert language.flops_picture == 2 * 256 * LAYERS * layer


@pytest.mark.parametrize("name", NAMED)
def test_all_is_the_sum_of_the_parts(name):
    parts = dict(counted(name))
    whole = parts.pop("all")
    for item in ("total", "text_token", "image_token", "flops_text_token", "flops_picture"):
        assert getattr(whole, item) == sum(getattr(part, item) for part in parts.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_dense_models_flops_are_those_of_a_run(tmp_path, family):
    model, _ = tiny.compose_tiny(tmp_path, family, scales=(1, 2))
    ids_BL = torch.randint(0, 250, (1, 12))
    ids_BL[0, : tiny.NUM_PATCHES] = model.config.image_token_id
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    # With gradients, or torch's fused attention would hide its linear maps from the counter.
    with FlopCounterMode(display=False) as counter:
        model(ids_BL, pixel_values=pixels)
    ran = sum(counter.get_flop_counts()["Global"].get(operation, 0) for operation in WEIGHTED)
    counts = count(model.config)["all"]
    head = 2 * model.get_output_embeddings().weight.numel()
    texts = 12 - tiny.NUM_PATCHES  # a run applies the head to image tokens too
    wanted = counts.flops_picture + texts * counts.flops_text_token + tiny.NUM_PATCHES * head
    assert ran == wanted


@pytest.mark.parametrize("make", [tiny.make_tower, tiny.make_timm_tower])
def test_counts_of_a_checkpoint_are_those_of_its_weights(tmp_path, make):
    model, processor = tiny.compose_tiny(tmp_path / "parts", make=make)
    upcycle_model(model, tiny.moe_configs(PARTS, num_experts=6, top_k=3))
    save(model, processor, tmp_path / "out")
    counts = count(read_model(str(tmp_path / "out")))
    parameters = count_parameters(model)
    assert counts["all"].total == parameters.total
    # The llama's head is its embedding table, so a text token meets it whole, and a row of it.
    row = model.config.text_config.hidden_size
    tower = counts["vision"].image_token + counts["projector"].image_token
    assert counts["all"].text_token + tower == parameters.active + row


def test_a_convolutional_tower_is_counted_as_it_runs():
    language = read_model("paper").text_config
    vision = describe_tower("timm/test_resnet", "final", image_size=64)
    counts = count(LlavaCompeteConfig(text_config=language, vision_config=vision.to_dict()))
    assert counts["vision"].total == counts["vision"].image_token
    # More than once for each weight, as a convolution applies them at every place.
    assert counts["vision"].flops_picture > 2 * counts["vision"].total
