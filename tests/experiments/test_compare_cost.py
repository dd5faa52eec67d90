"""Routers swapped in place, and what their steps cost."""

import pytest
import torch
from torch import nn

from experiments.compare.cost import Bench, _rotated, _round, keeping
from experiments.compare.swap import build, install, watch_token_ids
from llava_compete import RoutingChange
from llava_compete.checkpoint import load
from llava_compete.moe.routers import ROUTERS
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost") / "moe"
    return tiny.make_checkpoint(folder, parts=("language_model",), router="topk", seed=7)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_swapped_router_is_the_one_that_load_makes(checkpoint, name):
    change = RoutingChange(router=name, fresh=True, seed=3)
    wanted, processor = load(checkpoint, routing=change)
    model, _ = load(checkpoint)
    chosen = build(model, change)
    watch_token_ids(model, {name: chosen})
    install(model, chosen)
    state = model.state_dict()
    assert state.keys() == wanted.state_dict().keys()
    for key, value in wanted.state_dict().items():
        assert torch.equal(state[key], value), key
    batch = tiny.make_batch(processor, [0, 1, 2])
    for mode in (True, False):
        got, held = model.train(mode)(**batch), wanted.train(mode)(**batch)
        assert torch.equal(got.loss, held.loss)
        assert got.losses.keys() == held.losses.keys()


def test_routers_can_be_swapped_to_and_fro(checkpoint):
    model, processor = load(checkpoint)
    batch = tiny.make_batch(processor, [0, 1])
    before = model(**batch).loss  # the checkpoint's gates are fresh ones of its seed
    sets = {name: build(model, RoutingChange(router=name, fresh=True)) for name in ROUTERS}
    watch_token_ids(model, sets)
    for chosen in sets.values():
        install(model, chosen)
        model(**batch)
    install(model, sets["topk"])
    assert torch.equal(model(**batch).loss, before)


def test_parameters_of_a_shared_module_count_once(checkpoint):
    model, _ = load(checkpoint)
    topk = build(model, RoutingChange(router="topk", fresh=True))
    assert topk.number_of_parameters() == 2 * 4 * 32  # layers, experts, width
    hyper = build(model, RoutingChange(router="hypermoe", fresh=True))
    install(model, hyper)
    routers = {
        name: parameter for name, parameter in model.named_parameters() if ".router." in name
    }
    assert hyper.number_of_parameters() == sum(p.numel() for p in routers.values())


def test_a_kept_storage_counts_once_and_parameters_do_not():
    weight = nn.Linear(6, 6, bias=False)
    x_D = torch.randn(6, requires_grad=True)
    with keeping(weight) as kept:
        exponential_D = x_D.exp()  # keeps its result: 6 numbers
        # sin keeps the same storage again, the product the weight and what sin gave.
        y = weight(exponential_D.view(2, 3).sin().flatten()).sum()
    assert sorted(kept.values()) == [24, 24]
    y.backward()
    assert x_D.grad is not None


class Args:
    """What a bench reads of a trainer's arguments."""

    device = torch.device("cpu")
    activation_checkpointing = False
    bf16 = False
    competition_max_layers = 1


class Held:
    """A trainer as far as a bench knows it."""

    args = Args()

    def __init__(self, model):
        self.model = model


def test_memory_is_exact_and_competition_costs_some(checkpoint):
    model, processor = load(checkpoint)
    batch = tiny.make_batch(processor, [0, 1])
    bench = Bench(Held(model))
    sets = {n: build(model, RoutingChange(router=n, fresh=True)) for n in ("topk", "compete")}
    first = {name: bench.step_bytes(chosen, batch) for name, chosen in sets.items()}
    again = {name: bench.step_bytes(chosen, batch) for name, chosen in reversed(sets.items())}
    assert first == again
    assert first["compete"] > first["topk"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mean_step_weighs_competition_by_its_share(checkpoint, monkeypatch):
    model, _ = load(checkpoint)
    bench = Bench(Held(model))
    monkeypatch.setattr(Bench, "_seconds", lambda *_, competing: 1.0 + competing)
    sets = {n: build(model, RoutingChange(router=n, fresh=True)) for n in ("topk", "compete")}
    assert bench.mean_seconds(sets["topk"], {}, 0, 0.25) == 1.0
    assert bench.mean_seconds(sets["compete"], {}, 0, 0.25) == 0.75 * 1 + 0.25 * 3  # two layers
    assert bench.mean_seconds(sets["compete"], {}, 0, 0.0) == 1.0


def test_a_step_runs_forward_backward_and_the_routers_ends(checkpoint):
    model, processor = load(checkpoint)
    batch = tiny.make_batch(processor, [0, 1])
    bench = Bench(Held(model))
    chosen = build(model, RoutingChange(router="shared_v3", fresh=True))
    before = {name: value.clone() for name, value in chosen.all()[0].named_buffers()}
    assert bench.mean_seconds(chosen, batch, 0, 0.5) > 0
    after = dict(chosen.all()[0].named_buffers())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_every_name_begins_once():
    assert [_rotated(["a", "b", "c"], by)[0] for by in range(4)] == ["a", "b", "c", "a"]


@pytest.mark.parametrize("number", range(4))
def test_the_reference_is_timed_throughout_a_round(number):
    class Clock:
        """Each step takes a second longer than the one before it."""

        def __init__(self):
            self.order = []

        def mean_seconds(self, chosen, *_):
            self.order.append(chosen)
            return float(len(self.order))

    clock = Clock()
    found = _round(clock, {name: name for name in ("topk", "a", "b", "c")}, number, {}, 0, 0.1)
    assert len(found["topk"]) == 4
    assert all(len(found[name]) == 1 for name in "abc")
    times = dict(enumerate(clock.order, start=1))
    assert all(times[second] == name for name, of_name in found.items() for second in of_name)
    names = _rotated(["topk", "a", "b", "c"], number)
    assert clock.order == [names[0], "topk", *names[:2], "topk", *names[2:], "topk"]
    own = 2 + names.index("topk") + (names.index("topk") >= 2) + 1
    assert found["topk"][-1] == own
