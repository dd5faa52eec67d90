"""What must not depend on how a step's samples are batched, padded, or recomputed."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.data import IGNORED
from tests import tiny
from tests.tiny import answer_count, compete

every_step = pytest.mark.parametrize("competing", [False, True], ids=["router", "competition"])
# Weights of the losses that are means over tokens; a balance loss is a product of two means.
PER_TOKEN = {"balance": 0.0, "competition_balance": 0.0, "router_z": 0.1, "distillation": 5.0}


def gradients(model):
    """And clear them; a parameter nothing reached counts as zero."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(got, wanted):
    assert any(gradient.any() for gradient in wanted.values())
    for name in wanted:
        assert_close(
            got[name], wanted[name], atol=2e-6, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )


def padded_by(batch, processor, extra):
    values = {
        "input_ids": processor.tokenizer.pad_token_id,
        "attention_mask": 0,
        "labels": IGNORED,
    }
    wider = {name: F.pad(batch[name], (0, extra), value=value) for name, value in values.items()}
    return {**batch, **wider}


def test_two_uneven_micro_batches_add_up_to_one_large_batch(dense):
    model, processor = dense()
    model.train()
    large = tiny.make_batch(processor, [0, 1, 2, 3], text_only={2, 3})
    parts = [
        tiny.make_batch(processor, [0, 1]),
        tiny.make_batch(processor, [2, 3], text_only={2, 3}),
    ]
    total = answer_count(large)
    whole = model(**large, num_items_in_batch=total).loss
    whole.backward()
    wanted = gradients(model)
    losses = [model(**part, num_items_in_batch=total).loss for part in parts]
    sum(losses).backward()
    assert_close(sum(losses), whole)
    assert_same_gradients(gradients(model), wanted)


@every_step
def test_router_losses_of_equal_micro_batches_add_up_to_those_of_one_large_batch(moe, competing):
    model, processor = moe(loss_weights=PER_TOKEN)
    compete(model, competing)
    large = tiny.make_batch(processor, [0, 3, 6, 9])
    parts = [tiny.make_batch(processor, [0, 3]), tiny.make_batch(processor, [6, 9])]
    total = answer_count(large)
    assert large["attention_mask"].all(), "else the micro-batches would not be equal"
    whole = model(**large, num_items_in_batch=total).loss
    whole.backward()
    wanted = gradients(model)
    losses = [model(**part, num_items_in_batch=total).loss for part in parts]
    sum(losses).backward()
    assert_close(sum(losses), whole)
    assert_same_gradients(gradients(model), wanted)


@every_step
def test_the_same_micro_batch_twice_is_the_batch_of_both_with_every_loss(moe, competing):
    model, processor = moe()
    compete(model, competing)
    large = tiny.make_batch(processor, [0, 1, 0, 1])
    half = tiny.make_batch(processor, [0, 1])
    total = answer_count(large)
    whole = model(**large, num_items_in_batch=total).loss
    whole.backward()
    wanted = gradients(model)
    for _ in range(2):
        loss = model(**half, num_items_in_batch=total).loss
        loss.backward()
        assert_close(2 * loss, whole)
    assert_same_gradients(gradients(model), wanted)


@every_step
def test_more_padding_changes_no_loss_no_metric_and_no_gradient(moe, competing):
    model, processor = moe()
    compete(model, competing)
    batch = tiny.make_batch(processor, range(3), text_only={1})
    plain = model(**batch)
    plain.loss.backward()
    wanted = gradients(model)
    wider = model(**padded_by(batch, processor, 9))
    wider.loss.backward()
    assert_close(wider.loss, plain.loss)
    assert_close(dict(wider.losses), dict(plain.losses))
    assert_close(dict(wider.metrics), dict(plain.metrics))
    assert_same_gradients(gradients(model), wanted)


@every_step
def test_the_order_of_the_batch_changes_no_loss(moe, competing):
    model, processor = moe()
    compete(model, competing)
    one = model(**tiny.make_batch(processor, [0, 1, 2], text_only={1}))
    two = model(**tiny.make_batch(processor, [2, 0, 1], text_only={1}))
    assert_close(one.loss, two.loss)
    assert_close(dict(one.losses), dict(two.losses))


@every_step
def test_activation_checkpointing_changes_no_bit(moe, competing):
    model, processor = moe()
    compete(model, competing)
    batch, calls = tiny.make_batch(processor, range(3), text_only={1}), []
    layer = model.moe_layers()["language_model"][0]
    layer.register_forward_pre_hook(lambda module, args: calls.append(module.mask_T.sum()))
    plain = model(**batch)
    plain.loss.backward()
    wanted = gradients(model)
    assert len(calls) == 1
    model.activation_checkpointing_enable({"use_reentrant": False})
    again = model(**batch)
    again.loss.backward()
    assert len(calls) == 3, "the backward recomputes the layer"
    assert len({int(count) for count in calls}) == 1
    assert torch.equal(again.loss, plain.loss)
    for name, value in plain.losses.items():
        assert torch.equal(again.losses[name], value), name
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, wanted[name]), name


def test_reentrant_checkpointing_is_refused_rather_than_leaving_routers_untrained(moe):
    model, processor = moe()
    model.train().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="router losses of language_model have no graph"):
        model(**tiny.make_batch(processor, range(2)))


def test_frozen_routers_and_evaluation_need_no_graph(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, range(2))
    with torch.no_grad():
        assert model.eval()(**batch).loss.isfinite()
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    assert model.train()(**batch).loss.isfinite()


@every_step
def test_a_text_only_batch_gives_the_tower_zero_gradients_and_not_none(moe, competing):
    model, processor = moe()
    compete(model, competing)
    model(**tiny.make_batch(processor, [0, 1], text_only={0, 1})).loss.backward()
    image_side = [*model.vision.named_parameters(), *model.projector.named_parameters()]
    for name, parameter in image_side:
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert model.language_model.model.layers[0].mlp.router.gate.weight.grad.any()


@every_step
def test_the_blank_image_of_a_text_only_batch_is_counted_nowhere(moe, competing):
    model, processor = moe()
    compete(model, competing)
    batch = tiny.make_batch(processor, [0, 1], text_only={0, 1})
    output = model(**batch)
    assert output.loss.isfinite()
    for values in (output.losses, output.metrics):
        assert any(name.startswith("projector/") for name in values)
        for name, value in values.items():
            statistic = not name.endswith("/competing_layers")
            assert value.isnan() == (statistic and name.startswith("projector/")), name
    weights = model.config.moe_configs["language_model"].loss_weights
    router_loss = sum(
        weights[name.split("/")[1]] * value
        for name, value in output.losses.items()
        if name.startswith("language_model/")
    )
    assert_close(output.loss.detach(), output.losses["language"] + router_loss)


@pytest.mark.parametrize("before", ["nothing", "a training step", "a forward without labels"])
def test_a_text_only_batch_is_evaluated_alike_whatever_ran_before(moe, before):
    """The projector does not run, so nothing of an earlier batch may count for it."""
    model, processor = moe()
    batch = tiny.make_batch(processor, [0], text_only={0})
    earlier = tiny.make_batch(processor, range(3))
    if before == "a forward without labels":
        del earlier["labels"]
    if before != "nothing":
        model.train()(**earlier)
    output = model.eval()(**batch)
    weights = model.config.moe_configs["language_model"].loss_weights
    router_loss = sum(
        weights[name.split("/")[1]] * value
        for name, value in output.losses.items()
        if name.startswith("language_model/")
    )
    assert_close(output.loss.detach(), output.losses["language"] + router_loss)
    for name, value in output.losses.items():
        assert value.isnan() or not name.startswith("projector/"), name


def test_the_tower_runs_on_a_text_only_batch_in_training_only(dense):
    model, processor = dense()
    batch, calls = tiny.make_batch(processor, [0], text_only={0}), []
    model.vision.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))
    evaluated = model.eval()(**batch).loss
    assert calls == []
    trained = model.train()(**batch).loss
    assert calls == [1]
    assert torch.equal(trained, evaluated)


@every_step
def test_a_batch_without_answers_has_a_finite_loss_and_finite_gradients(moe, competing):
    model, processor = moe()
    compete(model, competing)
    batch = tiny.make_batch(processor, [0, 1])
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize("competing", [False, True])
def test_what_checkpointing_runs_again_leaves_no_graph_behind(moe, competing):
    model, processor = moe()
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    model.set_competing([competing] * len(model.competitors()))
    model(**tiny.make_batch(processor, (0, 3))).loss.backward()
    assert all(layer.routing is None for part in model.moe_layers().values() for layer in part)
