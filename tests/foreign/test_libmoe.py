"""CompeteSMoE's layout, read: the same logits as a reference written from its description."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import Phi3Config, Phi3ForCausalLM, SiglipVisionModel

from llava_compete import LlavaCompeteForConditionalGeneration, load
from llava_compete.__main__ import main
from llava_compete.foreign import towers
from llava_compete.foreign.imported import import_state
from llava_compete.foreign.libmoe import (
    LAYER,
    PROJECTOR,
    TOWER,
    import_libmoe,
    is_libmoe,
    libmoe_config,
    libmoe_rules,
)
from llava_compete.foreign.siglip import siglip_vision
from llava_compete.processor import prompt_batch
from tests import tiny
from tests.foreign import libmoe

IMAGE_TOKEN_ID = libmoe.VOCABULARY - 1


@pytest.fixture(scope="module")
def reference():
    return libmoe.Reference()


@pytest.fixture
def read(reference, tmp_path):
    """Write a state as a checkpoint, and import that."""

    def read(state=None, values=None, **given):
        state = reference.state_dict() if state is None else state
        folder = libmoe.write_checkpoint(tmp_path / "theirs", state, **(values or {}))
        assert is_libmoe(folder)
        return import_libmoe(folder, **given)

    return read


def model_of(result):
    result.config.image_token_id = IMAGE_TOKEN_ID
    model = LlavaCompeteForConditionalGeneration(result.config)
    model.load_state_dict(result.tensors)
    return model.eval()


def row(pictures):
    ids = torch.randint(2, 250, (20,), generator=torch.Generator().manual_seed(3))
    for picture in range(pictures):
        ids[2 + 8 * picture : 2 + 8 * picture + libmoe.SIDE**2] = IMAGE_TOKEN_ID
    return ids


@pytest.mark.parametrize("router", ["compete", "topk"])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_logits_equal_the_reference(reference, read, pictures, router):
    model, ids = model_of(read(router=router)), row(pictures)
    pixels = torch.randn(pictures, 3, libmoe.SIZE, libmoe.SIZE) if pictures else None
    theirs = reference.logits(ids, IMAGE_TOKEN_ID, pixels)
    with torch.no_grad():
        ours = model(ids[None], pixel_values=pixels).logits[0]
    print(f"\n{pictures} pictures: {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1f}")
    assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_features_at_both_scales_equal_the_reference(reference, read):
    model, pixels = model_of(read()), torch.randn(2, 3, libmoe.SIZE, libmoe.SIZE)
    assert model.config.vision.scales == (1, 3)
    with torch.no_grad():
        assert_close(model.vision(pixels), reference.features(pixels), atol=1e-5, rtol=1e-5)


def test_one_scale_is_read_from_the_projector(read):
    one = libmoe.Reference(scales=(1,))
    model, pixels = model_of(read(one.state_dict())), torch.randn(1, 3, libmoe.SIZE, libmoe.SIZE)
    assert model.config.vision.scales == (1,)
    with torch.no_grad():
        assert_close(model.vision(pixels), one.features(pixels), atol=1e-5, rtol=1e-5)


def test_every_key_is_used_or_dropped_for_a_reason(reference, read):
    result = read()
    report, keys = result.report, set(reference.state_dict())
    assert set(report.used) | set(report.dropped) == keys
    last = f"encoder.layers.{libmoe.BLOCKS - 1}."
    wanted = {key for key in keys if last in key or key.endswith(".prob_flips")}
    assert set(report.dropped) == wanted
    moe = result.config.moe_configs
    assert {(part, c.num_experts, c.top_k) for part, c in moe.items()} == {
        ("projector", libmoe.EXPERTS, libmoe.TOP_K),
        ("vision", libmoe.EXPERTS, libmoe.TOP_K),
    }


def test_experts_keep_their_numbers(reference, read):
    stacked = read().tensors["vision.trunk.blocks.0.mlp.experts.down_proj"]
    experts = reference.model.vision_tower.vision_model.encoder.layers[0].moelayer.experts
    for number, expert in enumerate(experts):
        assert torch.equal(stacked[number], expert.fc2.weight)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.vision_tower.vision_model.encoder.layers.1.moelayer.experts.2.fc1.bias", "needs p"),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", "needs parts"),
        ("model.mm_projector.moelayer.gate.weight", "1 missing: projector.router.gate.weight"),
        ("model.layers.1.mlp.down_proj.weight", "missing: language_model.model.layers.1.mlp.down"),
        (
            "model.vision_tower.vision_model.embeddings.patch_embedding.weight",
            "missing: vision.trunk.patch_em",
        ),
    ],
)
def test_a_key_that_is_gone_is_named(reference, read, key, message):
    state = reference.state_dict()
    del state[key]
    with pytest.raises(ValueError, match=message):
        read(state)


def test_a_key_nobody_knows_is_named(reference, read):
    state = {**reference.state_dict(), "model.mm_projector.moelayer.luna.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 unused: model\.mm_projector\.moelayer\.luna\.weight"):
        read(state)


def test_experts_elsewhere_than_in_this_layout_are_asked_for(reference, read):
    theirs = reference.state_dict()
    with pytest.raises(ValueError, match=r"no model\.vision_tower.*moelayer\.experts, which this"):
        read({key: theirs[key] for key in theirs if "encoder" not in key})


@pytest.mark.parametrize(
    ("values", "given", "message"),
    [
        ({"num_selected": None}, {}, "config.json has no num_selected: give --top_k"),
        ({"mm_vision_tower": "a/b"}, {}, "image tower 'a/b' is neither .* give --vision_weights"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14"}, {}, "14' is not a SigLIP"),
        ({"mm_vision_tower": "google/siglip-base-patch16-224"}, {}, "64 features and .* 768 at a"),
        ({}, {"top_k": 5}, "top_k=5 must be between 1 and num_experts=4"),
        ({"vocab_size": 200}, {}, "embed_tokens.weight is .300, 32., the model has .200, 32."),
    ],
)
def test_what_does_not_fit_is_named(read, values, given, message):
    with pytest.raises(ValueError, match=message):
        read(values=values, **given)


def test_the_towers_shape_may_stand_elsewhere(reference, read, tmp_path):
    values = {"mm_vision_tower": "someone/a-siglip", "num_selected": None}
    result = read(values=values, vision_weights=str(tmp_path / "siglip"), top_k=1)
    assert result.config.vision.name == "someone/a-siglip"
    assert result.config.moe_configs["vision"].top_k == 1


def test_the_layout_is_told_by_the_projectors_experts(tmp_path):
    other = {"model.mm_projector.0.weight": torch.ones(2), "lm_head.weight": torch.ones(2)}
    save_file(other, tmp_path / "model.safetensors")
    assert not is_libmoe(tmp_path)


def test_the_papers_model_in_full_size_has_the_tensors_that_ours_wants():
    """Shapes alone, on the meta device: 4 experts in 27 blocks and the projector."""
    tower = towers.PUBLISHED["google/siglip-so400m-patch14-224"].config
    with torch.device("meta"):
        state = Phi3ForCausalLM(Phi3Config()).state_dict()
        for name, value in SiglipVisionModel(tower).state_dict().items():
            key = f"{TOWER}{name.removeprefix('vision_model.')}"
            at, mlp, rest = key.partition("mlp.")
            if not mlp or "vision_model.head." in key:
                state[key] = value
                continue
            state |= {f"{at}moelayer.experts.{expert}.{rest}": value for expert in range(4)}
            state[f"{at}moelayer.gate.weight"] = torch.empty(4, 1152)
        for layer, width in (("0", 2304), ("2", 3072)):
            for expert in range(4):
                state[f"{PROJECTOR}experts.{expert}.{layer}.weight"] = torch.empty(3072, width)
                state[f"{PROJECTOR}experts.{expert}.{layer}.bias"] = torch.empty(3072)
        state[f"{PROJECTOR}gate.weight"] = torch.empty(4, 2304)
    vision = siglip_vision("so400m", tower, LAYER, scales=(1, 3))
    config = libmoe_config(state, Phi3Config(), vision, top_k=2, router="compete")
    imported = import_state(config, state, libmoe_rules(tower), source="meta")
    # As `llava-compete count paper_used` has it.
    assert sum(value.numel() for value in imported.tensors.values()) == 5_058_400_000


def test_the_verb_makes_a_checkpoint_of_ours(reference, tmp_path):
    theirs = libmoe.write_checkpoint(tmp_path / "theirs", reference.state_dict())
    tiny.make_tokenizer().save_pretrained(theirs)
    main(["import", str(theirs), str(tmp_path / "ours")])
    loaded, processor = load(tmp_path / "ours")
    assert "prob_flips: the competition" in (tmp_path / "ours" / "import_report.txt").read_text()
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    batch = prompt_batch(processor, [[{"role": "user", "content": content}]], [[tiny.draw(1)]])
    with torch.no_grad():
        ours = loaded(**batch).logits[0]
    image_id = loaded.config.image_token_id
    expected = reference.logits(batch["input_ids"][0], image_id, batch["pixel_values"])
    assert_close(ours, expected, atol=2e-5, rtol=1e-5)
