"""HyperMoE against loops.  T tokens, E experts, K chosen per token, D width in, O width out."""

import copy
import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from llava_compete import load, save, upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec, hypermoe
from tests import tiny

T, E, K, D, OUT, H = 30, 5, 2, 12, 8, 3
EXPERTS = Experts(E, D, 12, OUT, activation="silu", gated=True, bias=False)
SPEC = RouterSpec(
    width=D, out_width=OUT, num_experts=E, top_k=K, seed=1, options={"adapter_width": H}
)


def make_router(moved=True, **changes):
    """A second layer's router, behind a first one; off its start, where adapters add nothing."""
    first = ROUTERS["hypermoe"](replace(SPEC, **{"seed": 0, **changes}))
    router = ROUTERS["hypermoe"](replace(SPEC, previous=first, **changes))
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in all_parameters(router).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return router


def all_parameters(router):
    """Its own and the shared hypernetwork's, by name."""
    shared = router._shared[0].named_parameters(prefix="shared")
    return {**dict(router.named_parameters()), **dict(shared)}


def loop_adapter(router, x_D, chosen):
    """The paper's way: one adapter for one token, from the sum of its unselected embeddings."""
    shared = router._shared[0]
    unselected = sum(router.expert_embeddings[e] for e in range(E) if e not in chosen)
    condition = torch.cat([router.selection(unselected), router.layer_embedding])
    numbers = shared.head.weight @ torch.relu(shared.hidden(condition)) + shared.head.bias
    down, up = numbers[: H * D].view(H, D), numbers[H * D + H : H * D + H + H * OUT].view(H, OUT)
    down_bias, up_bias = numbers[H * D : H * D + H], numbers[H * D + H + H * OUT :]
    hidden = [max(down[h] @ x_D + down_bias[h], torch.zeros(()).double()) for h in range(H)]
    return sum(hidden[h] * up[h] for h in range(H)) + up_bias


def test_adapters_and_their_gradients_equal_the_loop_of_one_adapter_per_token():
    router, x_TD = make_router().double(), torch.randn(T, D).double()
    router.spec.previous.double()
    mixing_TO = torch.randn(T, OUT).double()
    parameters = all_parameters(router)
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert len({tuple(sorted(ids)) for ids in routing.ids_TK.tolist()}) > 5
    of_adapters = {name: p for name, p in parameters.items() if name != "gate.weight"}
    got = torch.autograd.grad((routing.residual_TO * mixing_TO).sum(), list(of_adapters.values()))
    chosen = [set(ids) for ids in routing.ids_TK.tolist()]
    wanted_TO = torch.stack([loop_adapter(router, x_TD[t], chosen[t]) for t in range(T)])
    wanted = torch.autograd.grad((wanted_TO * mixing_TO).sum(), list(of_adapters.values()))
    assert_close(routing.residual_TO, wanted_TO, atol=1e-12, rtol=1e-12)
    for name, value, target in zip(of_adapters, got, wanted, strict=True):
        assert_close(value, target, atol=1e-11, rtol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        assert target.norm() > 1e-3, name


def loop_load(logits_E, e):
    """Shazeer's: the chance that e stays or comes among the K under noise on its own logit."""
    others = sorted((z for other, z in enumerate(logits_E) if other != e), reverse=True)
    deviation = math.log(1 + math.exp(0)) + 0.01
    return 0.5 * (1 + torch.erf((logits_E[e] - others[K - 1]) / deviation / 2**0.5))


def loop_cv_squared(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return variance / (mean**2 + 1e-10)


def test_choice_weights_losses_and_gate_gradient_equal_the_loop():
    router, x_TD = make_router(), torch.randn(T, D)
    mask_T = torch.arange(T) % 4 != 1
    with torch.no_grad():
        router.gate.weight.mul_(10)
    mixing_TK = torch.randn(T, K)
    routing = router(x_TD, EXPERTS, RoutingContext(mask_T=mask_T))
    total = (routing.weights_TK * mixing_TK).sum() + routing.losses["balance"]
    got = torch.autograd.grad(total, router.gate.weight)[0]

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    importance, load = [0.0] * E, [0.0] * E
    weights = []
    for t in range(T):
        logits_E = weight_ED @ x_TD[t].double()
        best = sorted(range(E), key=lambda e: -logits_E[e].item())[:K]
        assert routing.ids_TK[t].tolist() == best
        weights.append(logits_E[best].softmax(dim=-1))
        if mask_T[t]:
            for e, weight in zip(best, weights[-1], strict=True):
                importance[e] = importance[e] + weight
            load = [load[e] + loop_load(logits_E, e) for e in range(E)]
    weights_TK = torch.stack(weights)
    balance = loop_cv_squared(importance) + loop_cv_squared(load)
    wanted = torch.autograd.grad((weights_TK * mixing_TK).sum() + balance, weight_ED)[0]
    close = {"atol": 2e-6, "rtol": 2e-5, "check_dtype": False}
    assert_close(routing.weights_TK, weights_TK.detach(), **close)
    assert_close(routing.losses["balance"], balance.detach(), **close)
    assert_close(got, wanted, **close)
    assert wanted.norm() > 0.1


def test_the_expected_load_is_the_frequency_of_being_chosen_under_noise():
    logits_E = torch.tensor([0.9, 0.1, 0.3, -0.2, -1.0])
    load_E = hypermoe.expected_load(logits_E[None], K)[0]
    noise_N = hypermoe.NOISE * torch.randn(40_000)
    for e in range(E):
        noisy_NE = logits_E.expand(len(noise_N), E).clone()
        noisy_NE[:, e] += noise_N
        chosen_N = (noisy_NE.topk(K, dim=-1).indices == e).any(dim=-1)
        assert_close(load_E[e], chosen_N.float().mean(), atol=0.01, rtol=0)


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_trains_the_gate_towards_even_loads(top_k):
    router, x_TD = make_router(top_k=top_k), torch.randn(200, D)
    with torch.no_grad():
        x_TD[:, 0] += 2
        router.gate.weight[1, 0] += 1
    optimizer = torch.optim.SGD([router.gate.weight], lr=0.05)
    shares = []
    for _ in range(60):
        routing = router(x_TD, EXPERTS, RoutingContext())
        shares.append((routing.ids_TK == 1).any(dim=-1).float().mean())
        optimizer.zero_grad()
        routing.losses["balance"].backward()
        optimizer.step()
    assert shares[0] > 0.9
    assert shares[-1] < (0.5 if top_k == 1 else 0.7)


def test_the_choice_and_the_gate_at_the_start_are_those_of_topk():
    x_TD = torch.randn(T, D)
    plain = ROUTERS["topk"](replace(SPEC, options={}))
    got, wanted = (r(x_TD, EXPERTS, RoutingContext()) for r in (make_router(moved=False), plain))
    assert torch.equal(got.ids_TK, wanted.ids_TK)
    assert torch.equal(got.weights_TK, wanted.weights_TK)


def test_adapters_add_nothing_at_the_start_and_all_is_trained_after_one_step():
    router, x_TD = make_router(moved=False), torch.randn(T, D)
    parameters = all_parameters(router)
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for step in range(2):
        routing = router(x_TD, EXPERTS, RoutingContext())
        if step == 0:
            assert not routing.residual_TO.any()
        optimizer.zero_grad()
        (routing.residual_TO - 1).square().sum().backward()
        moved = {n for n, p in parameters.items() if p.grad is not None and p.grad.any()}
        assert moved == (
            {"shared.head.weight", "shared.head.bias"}
            if step == 0
            else {*parameters} - {"gate.weight"}
        )
        optimizer.step()
    assert all(value.any() for value in before.values())


def test_a_layer_makes_each_sets_adapter_once_whatever_the_number_of_tokens():
    router, rows = make_router(), []
    router._shared[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    for tokens in (1, T):
        router(torch.randn(tokens, D), EXPERTS, RoutingContext())
    assert rows == [math.comb(E, K)] * 2
    chosen = {tuple(row.nonzero()[:, 0].tolist()) for row in router._sets_SE}
    assert chosen == set(combinations(range(E), K))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_experts": 4, "top_k": 4}, "top_k=4 of num_experts=4 leaves no expert unselected"),
        ({"num_experts": 10, "top_k": 5}, "each of the 252 sets of chosen experts, 128 at most"),
        ({"router_options": {"adapter_width": 0}}, "adapter_width=0 must be at least 1"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router="hypermoe", **values)


def test_layers_of_different_widths_cannot_share_and_are_refused():
    first = ROUTERS["hypermoe"](SPEC)
    with pytest.raises(ValueError, match="12 -> 8 there and 16 -> 8 here"):
        ROUTERS["hypermoe"](replace(SPEC, width=16, previous=first))


def networks(model):
    return [layer.router._shared[0] for layer in model.moe_layers()["language_model"]]


def assert_shared(model):
    assert len({id(network) for network in networks(model)}) == 1
    assert networks(model)[0] in set(model.modules())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    of_language = [n for n in names if "hypernetwork.head.weight" in n and "language_model" in n]
    assert of_language == ["language_model.model.layers.0.mlp.router.hypernetwork.head.weight"]
    assert sum(name.startswith("language_model") and "hypernetwork" in name for name in names) == 4


PARTS = ("vision", "projector", "language_model")


def move_adapters(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hypernetwork" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_the_layers_of_a_part_share_one_hypernetwork_saved_once(moe, tmp_path):
    model, processor = moe(router="hypermoe", parts=PARTS)
    assert_shared(model)
    move_adapters(model)
    batch = tiny.make_batch(processor, range(2))
    wanted = model.eval()(**batch).loss
    save(model, processor, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert sum("hypernetwork.head.weight" in name for name in saved) == len(PARTS)
    loaded, _ = load(tmp_path / "saved")
    assert_shared(loaded)
    assert torch.equal(loaded(**batch).loss, wanted)


def test_a_copy_of_the_model_shares_among_its_own_layers(moe):
    model, processor = moe(router="hypermoe", parts=("language_model",))
    copied, batch = copy.deepcopy(model), tiny.make_batch(processor, range(2))
    assert_shared(copied)
    assert networks(copied)[0] is not networks(model)[0]
    wanted = model.eval()(**batch).loss
    assert torch.equal(copied.eval()(**batch).loss, wanted)
    move_adapters(copied)
    assert torch.equal(model(**batch).loss, wanted)
    assert not torch.equal(copied(**batch).loss, wanted)


def test_upcycling_all_parts_leaves_the_output_as_it_was(dense):
    model, _ = dense()
    report = upcycle_model(model, tiny.moe_configs(PARTS, router="hypermoe"))
    assert report.largest_difference < 1e-5 * report.largest_logit


def test_checkpointing_changes_no_bit_and_every_layer_trains_the_hypernetwork(moe):
    model, processor = moe(router="hypermoe", parts=("language_model",))
    move_adapters(model)
    batch, found = tiny.make_batch(processor, range(3), text_only={1}), []
    for module in (copy.deepcopy(model), model):
        if module is model:
            model.activation_checkpointing_enable({"use_reentrant": False})
        loss = module.train()(**batch).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in module.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        if gradient is not None:
            assert torch.equal(found[1][1][name], gradient), name
    for index in range(2):
        name = f"language_model.model.layers.{index}.mlp.router.layer_embedding"
        assert found[0][1][name].any()
