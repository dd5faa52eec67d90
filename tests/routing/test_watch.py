"""Watching a model: what is told of each layer's tokens, and that nothing of it stays behind."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llava_compete.data import IGNORED
from llava_compete.moe import ROUTERS
from llava_compete.moe.analysis import replacement
from llava_compete.routing.watch import KINDS, RoutingTally, dropping_top1, watching
from tests import tiny
from tests.moe.reference import run_expert

IMAGE, TEXT, ANSWER = range(3)


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def run(model, batch):
    """Loss, answer losses and gradients of a forward and backward."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [output.loss.detach(), output.token_losses_A, *gradients]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_watching_changes_no_bit_and_leaves_no_hook(moe, training):
    model, processor = moe()
    model.train(training)
    batch, before = tiny.make_batch(processor, [0, 1, 2], text_only=[1]), hooks(model)
    wanted = run(model, batch)
    with watching(model, RoutingTally()):
        found = run(model, batch)
        assert hooks(model) > before
    assert hooks(model) == before
    assert len(found) == len(wanted) > 10
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("manager", [lambda m: watching(m, RoutingTally()), dropping_top1])
def test_no_hook_stays_after_a_failure(moe, manager):
    model, _ = moe()
    before = hooks(model)
    with pytest.raises(KeyboardInterrupt), manager(model):
        raise KeyboardInterrupt
    assert hooks(model) == before


def seen_in(model, batch):
    """What a watcher is told, by layer."""
    found = {}
    with torch.no_grad(), watching(model, lambda seen: found.update({seen.key: seen})):
        model(**batch)
    return found


def test_tokens_of_the_language_model_are_told_apart(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, [0, 2, 1], text_only=[1])
    ids, labels, mask = (
        batch[name].flatten().tolist() for name in ("input_ids", "labels", "attention_mask")
    )
    wanted = []
    for token, label, attended in zip(ids, labels, mask, strict=True):
        kind = IMAGE if token == model.config.image_token_id else TEXT
        kind = ANSWER if label != IGNORED else kind
        wanted.append(kind if attended else -1)
    assert {-1, IMAGE, TEXT, ANSWER} == set(wanted)
    found = seen_in(model, batch)
    for place in range(2):
        assert found["language_model", place].kind_T.tolist() == wanted
        assert found["language_model", place].ids_T.tolist() == ids
    projector = found["projector", 0]
    assert projector.kind_T.tolist() == [IMAGE] * 2 * tiny.NUM_PATCHES
    assert projector.ids_T is None


def test_patches_are_numbered_through_the_pictures(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, [0, 1, 2], text_only=[1])
    found = seen_in(model, batch)
    patches = list(range(2 * tiny.NUM_PATCHES))
    assert found["projector", 0].patch_T.tolist() == patches
    in_text_T = found["language_model", 0].patch_T
    is_image_T = batch["input_ids"].flatten() == model.config.image_token_id
    assert in_text_T[is_image_T].tolist() == patches
    assert set(in_text_T[~is_image_T].tolist()) == {-1}


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_in_the_tower_only_patches_of_whole_pictures_are_patches(tmp_path, scales):
    model, processor = tiny.compose_tiny(tmp_path, make=tiny.make_tower, scales=scales)
    tiny.upcycle_model(model, tiny.moe_configs(("vision",)))
    found = seen_in(model, tiny.make_batch(processor, [0, 1]))["vision", 0]
    crops, tokens = sum(scale**2 for scale in scales), 1 + tiny.NUM_PATCHES  # the class token
    patch_NCS = found.patch_T.view(2, crops, tokens)
    for image in range(2):
        begin = image * tiny.NUM_PATCHES
        assert patch_NCS[image, 0].tolist() == [-1, *range(begin, begin + tiny.NUM_PATCHES)]
        assert (patch_NCS[image, 1:] == -1).all()
    assert (found.kind_T == IMAGE).all()


def test_the_blank_picture_of_a_text_only_batch_is_not_counted(moe):
    model, processor = moe()
    found = seen_in(model.train(), tiny.make_batch(processor, [0, 1], text_only=[0, 1]))
    assert set(found["projector", 0].kind_T.tolist()) == {-1}


def test_a_competing_layer_has_nothing_to_say(moe):
    model, processor = moe()
    model.train().set_competing([True, False, True])
    found = seen_in(model, tiny.make_batch(processor, [0]))
    assert set(found) == {("language_model", 1)}


def test_what_activation_checkpointing_repeats_is_counted_once(moe):
    model, processor = moe()
    model.activation_checkpointing_enable({"use_reentrant": False})
    calls = []
    with watching(model.train(), lambda seen: calls.append(seen.key)):
        model(**tiny.make_batch(processor, [0, 1])).loss.backward()
    assert sorted(calls) == [("language_model", 0), ("language_model", 1), ("projector", 0)]


def make_router_model(moe, router):
    needs = ROUTERS[router]
    parts = ("language_model",) if needs.needs_token_ids or needs.needs_previous else tiny.PARTS
    return moe(parts=parts, router=router)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_can_be_watched_and_lose_its_first_expert(moe, router):
    model, processor = make_router_model(moe, router)
    batch, tally = tiny.make_batch(processor, [0, 1, 2], text_only=[1]), RoutingTally()
    with torch.no_grad(), watching(model, tally):
        whole = model(**batch).token_losses_A
    for tallies in tally.tallies.values():
        for sums in tallies:
            figures = sums.figures()
            if figures["tokens"]:
                assert sum(figures["load"]) == pytest.approx(1)
                assert 0 <= figures["agreement"] <= 1
                assert figures["drop_top1"] > 0
    with torch.no_grad(), dropping_top1(model):
        dropped = model(**batch).token_losses_A
    assert dropped.isfinite().all()
    assert not torch.equal(dropped, whole)


def test_the_figures_are_those_of_the_layers_own_tokens(moe):
    """The split by kind, end to end: counts and loads by a loop over what the layer chose."""
    model, processor = moe()
    batch, tally = tiny.make_batch(processor, [0, 2, 1], text_only=[1]), RoutingTally()
    with torch.no_grad(), watching(model, tally):
        model(**batch)
    for key, seen in seen_in(model, batch).items():
        for kind, name in enumerate(KINDS):
            rows = (seen.kind_T == kind).nonzero().flatten().tolist()
            pairs = [expert for t in rows for expert in seen.routing.ids_TK[t].tolist()]
            figures = tally.tallies[key][kind].figures()
            assert figures["tokens"] == len(rows), name
            if rows:
                assert figures["load"] == pytest.approx(
                    [pairs.count(e) / len(pairs) for e in range(4)]
                )


def test_dropping_the_first_expert_equals_the_loop_in_every_layer(moe):
    model, processor = moe(router="topk")
    batch = tiny.make_batch(processor, [0, 1])
    checked = []

    def check(layer, args, y):
        """Runs before the dropping hook: what that is to make of this layer's output."""
        x_TD, routing = args[0].flatten(0, 1), layer.last_routing
        first_T, next_T, weight_T = replacement(routing)
        wanted_TO = y.flatten(0, 1).clone()
        for t in range(len(x_TD)):
            if first_T[t] < layer.experts.num_experts:
                went_O, came_O = (
                    run_expert(layer.experts, int(expert), x_TD[t : t + 1])[0]
                    for expert in (first_T[t], next_T[t])
                )
                wanted_TO[t] += weight_T[t] * (came_O - went_O)
        checked.append(wanted_TO.view_as(y))

    outputs = []
    layers = [layer for part in model.moe_layers().values() for layer in part]
    handles = [layer.register_forward_hook(check) for layer in layers]
    with torch.no_grad(), dropping_top1(model):
        handles += [
            layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in layers
        ]
        model(**batch)
    for handle in handles:
        handle.remove()
    assert len(checked) == len(outputs) == 3
    assert_close(outputs, checked)


def test_the_figure_of_dropping_is_the_change_that_dropping_makes(moe):
    """In the first layer that runs, whose input dropping does not move."""
    model, processor = moe()
    batch, tally = tiny.make_batch(processor, [0, 1]), RoutingTally()
    (layer,) = model.moe_layers()["projector"]
    outputs = []
    with torch.no_grad(), watching(model, tally):
        handle = layer.register_forward_hook(lambda *call: outputs.append(call[-1]))
        model(**batch)
        handle.remove()
    with torch.no_grad(), dropping_top1(model):
        handle = layer.register_forward_hook(lambda *call: outputs.append(call[-1]))
        model(**batch)
        handle.remove()
    whole, dropped = (output.flatten(0, 1) for output in outputs)
    change_T = (dropped - whole).norm(dim=-1) / whole.norm(dim=-1)
    found = tally.tallies["projector", 0][IMAGE].figures()["drop_top1"]
    assert found == pytest.approx(change_T.mean().item())
    assert not math.isnan(found)
