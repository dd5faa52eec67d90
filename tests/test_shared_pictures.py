"""Rows that share a picture: seen once, and all else as if each row had brought its own."""

import copy
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from llava_compete.training.parts import set_trainable
from tests import tiny
from tests.tiny import compete

INDEX = torch.tensor([0, 1, 0, 0])


def batches(processor) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same rows with each its own copy of its picture, and with two pictures between them."""
    shared = tiny.make_batch(processor, range(4))
    shared["pixel_values"] = shared["pixel_values"][:2]
    alone = {**shared, "pixel_values": shared["pixel_values"][INDEX]}
    return alone, {**shared, "image_index": INDEX}


def seen(model, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loss, what is logged, gradients, and what each part is called with."""
    model.zero_grad()
    calls = {}
    handles = [
        getattr(model, part).register_forward_pre_hook(
            lambda module, args, part=part: calls.update({part: torch.tensor(len(args[0]))})
        )
        for part in ("vision", "projector")
    ]
    output = model(**batch)
    output.loss.backward()
    for handle in handles:
        handle.remove()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": output.loss.detach(), **output.losses, **output.metrics, **gradients, **calls}


@pytest.mark.parametrize("competing", [False, True])
@pytest.mark.parametrize(
    ("parts", "pictures"),
    [
        ((), {"vision": 2, "projector": 2}),
        (("language_model",), {"vision": 2, "projector": 2}),
        (("projector",), {"vision": 2, "projector": 4}),
        (("vision",), {"vision": 4, "projector": 4}),
    ],
)
def test_losses_and_gradients_are_those_of_rows_that_do_not_share(
    moe, dense, parts, pictures, competing
):
    model, processor = moe(parts=parts) if parts else dense()
    compete(model, competing)
    alone, shared = batches(processor)
    wanted, found = seen(model, alone), seen(model, shared)
    for part, count in pictures.items():
        assert found.pop(part) == count
        assert wanted.pop(part) == 4
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(found[name], value, equal_nan=True, msg=name)


def test_cached_features_are_shared_too(dense):
    model, processor = dense()
    set_trainable(model, ["projector"])
    alone, shared = batches(processor)
    cached = {k: v for k, v in shared.items() if k != "pixel_values"}
    cached["image_features"] = model.picture_features(shared["pixel_values"])
    wanted, found = seen(model.train(), alone), seen(model, cached)
    assert found["projector"] == 2
    for name in ("loss", "projector.linear_1.weight", "projector.linear_2.bias"):
        assert_close(found[name], wanted[name])


def test_an_index_of_other_length_than_the_placeholders_is_refused(dense):
    model, processor = dense()
    _, shared = batches(processor)
    with pytest.raises(ValueError, match=r"16 image tokens .* but 12 image features \(3 images"):
        model(**{**shared, "image_index": INDEX[:3]})


def test_a_frozen_tower_has_no_graph_and_is_in_evaluation(dense):
    model, processor = dense()
    batch = tiny.make_batch(processor, range(2))
    set_trainable(model, ["projector", "language_model"])
    model.train()
    assert not any(module.training for module in model.vision.modules())
    made = []
    model.vision.register_forward_hook(lambda module, args, output: made.append(output))
    model(**batch)
    assert made[0].grad_fn is None


@pytest.mark.parametrize("trainable", [["projector"], ["language_model"], ["vision"]])
def test_what_is_frozen_gets_no_gradient_and_makes_none_of_a_weight(dense, trainable):
    model, processor = dense()
    batch = tiny.make_batch(processor, range(2))
    whole = copy.deepcopy(model).train()
    whole(**batch).loss.backward()
    set_trainable(model, trainable)
    model.train()(**batch).loss.backward()
    gradients = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith(trainable[0]):
            assert_close(parameter.grad, gradients[name].grad, msg=name)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("trainable", [["projector"], ["vision", "projector", "language_model"]])
def test_checkpointing_runs_decoder_layers_again_and_neither_tower_nor_head(dense, trainable):
    model, processor = dense()
    set_trainable(model, trainable)
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    calls: dict[str, int] = {}

    def count(name: str):
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    layers = model.language_model.model.layers
    model.vision.register_forward_pre_hook(count("tower"))
    model.projector.register_forward_pre_hook(count("projector"))
    model.get_output_embeddings().register_forward_pre_hook(count("head"))
    layers[0].mlp.register_forward_pre_hook(count("layer"))
    model(**tiny.make_batch(processor, range(2))).loss.backward()
    assert calls == {"tower": 1, "projector": 1, "head": 1, "layer": 2}
