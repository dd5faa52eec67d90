"""Rows packed into sequences give what they give side by side: losses, gradients, router state.

B sequences, L tokens of each, T = B*L.
"""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface

from llava_compete import ROUTERS
from llava_compete.data import Collator, to_messages
from llava_compete.data.encode import encode
from llava_compete.packed_attention import PACKED_SDPA
from tests import tiny
from tests.tiny import compete

PACKS = [(0, 3), (1, 4, 2), (5,)]
TEXT_ONLY = {1, 4}


def samples(processor, indices):
    found = []
    for index in indices:
        row = tiny.make_row(index, index not in TEXT_ONLY)
        images = [tiny.draw(index)] if index not in TEXT_ONLY else []
        if index == 3:  # a second picture, in a turn of its own
            row["conversations"] += tiny.say("<image>\nAnd now?", "A box.")["conversations"]
            row["image"] = ["3.png", "9.png"]
            images.append(tiny.draw(9))
        found.append(encode(processor, to_messages(row), images))
    return found


def both_batches(processor, packs=PACKS):
    """The rows side by side, and the same rows packed."""
    collate = Collator(processor)
    order = [index for pack in packs for index in pack]
    return collate(samples(processor, order)), collate([samples(processor, p) for p in packs])


def step(model, batch):
    """Output and gradients of a training step, after which router state has moved."""
    routers = [layer.router for part in model.moe_layers().values() for layer in part]
    for router in routers:
        router.begin_step(0, 10)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    output = model(**batch)
    output.loss.backward()
    for router in routers:
        router.end_step()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    state = {n: b.clone() for n, b in model.named_buffers() if ".state_" in n}
    return output, gradients, state


def assert_same_step(packed, plain):
    assert_close(packed[0].loss, plain[0].loss, rtol=1e-5, atol=1e-6)
    assert_close(packed[0].token_losses_A, plain[0].token_losses_A, rtol=1e-4, atol=1e-5)
    for got, wanted in (
        (packed[0].losses, plain[0].losses),
        (packed[0].metrics, plain[0].metrics),
        (packed[1], plain[1]),
        (packed[2], plain[2]),
    ):
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_close(
                got[name],
                value,
                rtol=1e-4,
                atol=5e-6,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )


STEPS = [(name, False) for name in ROUTERS] + [(n, True) for n, r in ROUTERS.items() if r.competes]


@pytest.mark.parametrize(("router", "competing"), STEPS)
def test_losses_gradients_and_router_state_are_those_of_the_rows_side_by_side(
    moe, router, competing
):
    model, processor = moe(router=router, parts=("language_model",))
    model.set_competing([competing] * len(model.competitors()))
    model.train()
    plain, packed = both_batches(processor)
    assert (packed["attention_mask"] == 0).any()
    begun = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wanted = step(model, plain)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(begun[name])
    assert_same_step(step(model, packed), wanted)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_SDPA])
def test_every_family_keeps_packed_rows_apart(moe, family, attention):
    model, processor = moe(family)
    plain, packed = both_batches(processor)
    compete(model, True)
    wanted = step(model, plain)
    model.language_model.set_attn_implementation(attention)
    assert_same_step(step(model, packed), wanted)


@pytest.mark.parametrize("window", [8, 60])
def test_rows_longer_than_a_sliding_window_see_no_further(moe, window):
    model, processor = moe("mistral")
    model.language_model.config.sliding_window = window
    plain, packed = both_batches(processor)
    assert any(length < 60 for length in packed["packing"].lengths[:2])
    assert packed["packing"].longest > 60
    compete(model, True)
    wanted = step(model, plain)
    model.language_model.set_attn_implementation(PACKED_SDPA)
    assert_same_step(step(model, packed), wanted)
    model.language_model.config.sliding_window = 4096
    assert not torch.equal(step(model, packed)[0].loss, wanted[0].loss)


def test_attention_by_row_is_refused_where_there_are_no_packed_rows(dense):
    model, processor = dense()
    plain, _ = both_batches(processor)
    model.language_model.set_attn_implementation(PACKED_SDPA)
    with pytest.raises(ValueError, match="'packed_sdpa' is for packed batches; use 'sdpa'"):
        model(**plain)


def test_with_activation_checkpointing_a_packed_step_is_the_same(moe):
    model, processor = moe()
    compete(model, True)
    _, packed = both_batches(processor)
    wanted = step(model, packed)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_same_step(step(model, packed), wanted)


def test_no_row_sees_what_stands_before_it(dense):
    model, processor = dense()
    one, other = (both_batches(processor, [(first, 3)])[1] for first in (0, 6))
    start = one["packing"].starts_Q[1]
    assert start == other["packing"].starts_Q[1]
    logits = [model(**{**batch, "labels": None}).logits[:, start:] for batch in (one, other)]
    assert not torch.equal(one["input_ids"][:, :start], other["input_ids"][:, :start])
    assert torch.equal(*logits)


def test_the_attention_of_a_row_is_found_by_its_beginnings_alone(moe):
    """What flash attention is told; here by a loop over the rows."""
    seen = []

    def by_rows(module, query, key, value, attention_mask, scaling=None, **kwargs):
        assert attention_mask is None
        assert torch.equal(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"])
        starts = kwargs["cu_seq_lens_q"].tolist()
        assert starts[0] == 0
        assert starts[-1] == query.shape[0] * query.shape[2]
        assert kwargs["max_length_q"] == kwargs["max_length_k"]
        assert kwargs["max_length_q"] == max(
            end - start for start, end in itertools.pairwise(starts)
        )
        groups = query.shape[1] // key.shape[1]
        key, value = (kv.repeat_interleave(groups, dim=1) for kv in (key, value))
        q_THD, k_THD, v_THD = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        rows = []
        for start, end in itertools.pairwise(starts):
            q, k, v = (x[start:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
            scores = (q @ k.transpose(1, 2)) * scaling
            future = torch.ones_like(scores, dtype=torch.bool).triu(1)
            rows.append((scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1))
        seen.append(len(rows))
        return torch.cat(rows).view(*query.transpose(1, 2).shape), None

    AttentionInterface.register("by_rows", by_rows)
    AttentionMaskInterface.register("by_rows", lambda *_, **__: None)
    model, processor = moe()
    compete(model, True)
    _, packed = both_batches(processor)
    wanted = step(model, packed)
    model.language_model.config._attn_implementation = "by_rows"
    assert_same_step(step(model, packed), wanted)
    assert set(seen) == {len(packed["packing"].starts_Q) - 1}


def test_a_pack_of_one_row_each_is_the_plain_batch(moe):
    model, processor = moe()
    compete(model, False)
    plain, packed = both_batches(processor, [(0,), (1,), (2,)])
    assert torch.equal(plain["input_ids"], packed["input_ids"])
    assert_same_step(step(model, packed), step(model, plain))


def test_a_plain_batch_after_a_packed_one_is_not_taken_for_packed(moe):
    model, processor = moe(router="expert_choice", parts=("language_model",))
    model.train()
    plain, packed = both_batches(processor)
    wanted = step(model, plain)
    step(model, packed)
    assert_same_step(step(model, plain), wanted)
