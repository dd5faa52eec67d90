"""Routers that choose by a token's id, in a model."""

import pytest
import torch
from torch.testing import assert_close

from llava_compete import RoutingChange, load, save, upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, MoELayer, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.processor import prompt_batch
from tests import tiny

NAMES = [name for name, router in ROUTERS.items() if router.needs_token_ids]
every_name = pytest.mark.parametrize("name", NAMES)
PARTS = ["language_model"]


def make_prompt(processor, question="What is this?"):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return prompt_batch(processor, [[{"role": "user", "content": content}]], [[tiny.draw(1)]])


def routers(model):
    return [layer.router for layer in model.moe_layers()["language_model"]]


def train_step(model, batch, step, max_steps=10):
    """The gradients' part of an optimizer step."""
    for router in routers(model):
        router.begin_step(step, max_steps)
    output = model.train()(**batch)
    output.loss.backward()
    for router in routers(model):
        router.end_step()
    return output


def stage_two(model, processor):
    """The model with its light routers, where it has any, frozen."""
    train_step(model, tiny.make_batch(processor, [0]), step=1)
    model.zero_grad()
    return model.eval()


@every_name
@pytest.mark.parametrize("late", [False, True], ids=["untrained", "trained"])
def test_a_generated_token_has_the_experts_it_has_in_the_whole_text(moe, name, late):
    model, processor = moe(router=name, parts=PARTS)
    if late:
        stage_two(model, processor)
    prompt = make_prompt(processor)
    ids = model.eval().generate(**prompt, max_new_tokens=4, do_sample=False, eos_token_id=[])
    whole = {**prompt, "input_ids": torch.cat([prompt["input_ids"], ids], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    assert torch.equal(model(**whole).logits[:, -5:-1].argmax(dim=-1), ids)


@every_name
def test_ids_reach_the_routers_and_image_tokens_have_none(moe, name):
    model, processor = moe(router=name, parts=PARTS)
    prompt = make_prompt(processor)
    model.eval()(**prompt)
    ids_T = prompt["input_ids"].reshape(-1)
    is_image_T = ids_T == model.config.image_token_id
    assert is_image_T.any()
    for layer in model.moe_layers()["language_model"]:
        assert torch.equal(layer.token_ids_T, torch.where(is_image_T, -1, ids_T))


@every_name
@pytest.mark.parametrize("values", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_a_batch_expanded_behind_the_embedding_is_refused(moe, name, values):
    model, processor = moe(router=name, parts=PARTS)
    values = {"do_sample": "num_beams" not in values, **values}
    with pytest.raises(ValueError, match=r"token ids for \d+ tokens.*num_beams=1"):
        model.eval().generate(**make_prompt(processor), max_new_tokens=2, **values)


@every_name
@pytest.mark.parametrize("part", ["projector", "vision"])
def test_a_part_without_ids_is_refused(dense, name, part):
    model, _ = dense()
    with pytest.raises(ValueError, match=rf"{part}: router {name} chooses by a token's id"):
        upcycle_model(model, tiny.moe_configs([part], router=name))


@every_name
def test_a_router_without_a_vocabulary_or_ids_says_so(name):
    spec = RouterSpec(width=8, out_width=8, num_experts=4, top_k=2, seed=0)
    with pytest.raises(ValueError, match="vocab_size=None: this router chooses by"):
        ROUTERS[name](spec)
    experts = Experts(4, 8, 12, 8, activation="silu", gated=True, bias=False)
    layer = MoELayer(experts, MoEConfig(router=name), index=0, vocab_size=10)
    with pytest.raises(ValueError, match="was given none: set token_ids_T"):
        layer.router(torch.randn(3, 8), experts, RoutingContext())


@every_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_routes_as_before(moe, tmp_path, name, dtype):
    model, processor = moe(router=name, parts=PARTS)
    stage_two(model, processor)
    prompt = make_prompt(processor)
    save(model, processor, tmp_path / "saved")
    again, _ = load(tmp_path / "saved", dtype=dtype)
    for before, after in zip(routers(model), routers(again), strict=True):
        for key, value in before.state_dict().items():
            found = after.state_dict()[key]
            assert torch.equal(found, value.to(found.dtype)), key
            if "state_" in key:
                assert found.dtype == value.dtype
    if dtype == "float32":
        assert torch.equal(again(**prompt).logits, model(**prompt).logits)


@every_name
def test_another_routers_checkpoint_takes_it_when_routers_may_begin_anew(checkpoints, name):
    change = RoutingChange(router=name, parts=("language_model",), fresh=True, seed=7)
    model, processor = load(checkpoints["moe"], routing=change)
    for router in routers(model):
        loaded = {key: value.clone() for key, value in router.state_dict().items()}
        router.reset_parameters()
        for key, value in router.state_dict().items():
            assert torch.equal(value, loaded[key]), key
    assert model(**make_prompt(processor)).logits.isfinite().all()


@every_name
def test_checkpointing_changes_no_bit_where_stage_two_begins(moe, name):
    model, processor = moe(router=name, parts=PARTS)
    batch, first = tiny.make_batch(processor, range(3), text_only={1}), model.state_dict()
    first = {key: value.clone() for key, value in first.items()}
    plain = train_step(model, batch, step=1)
    wanted = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.load_state_dict(first)
    for router in routers(model):
        if name == "stablemoe":
            router.froze = False
    model.activation_checkpointing_enable({"use_reentrant": False})
    again = train_step(model, batch, step=1)
    assert torch.equal(again.loss, plain.loss)
    for key, parameter in model.named_parameters():
        if key in wanted:
            assert torch.equal(parameter.grad, wanted[key]), key


@every_name
def test_left_padding_changes_no_generated_token(moe, name):
    model, processor = moe(router=name, parts=PARTS)
    stage_two(model, processor)
    talks = [[{"role": "user", "content": text}] for text in ("Hi", "A longer question?")]
    values = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": []}
    both = model.generate(**prompt_batch(processor, talks, [[], []]), **values)
    for row, talk in enumerate(talks):
        alone = model.generate(**prompt_batch(processor, [talk], [[]]), **values)
        assert_close(both[row], alone[0])
