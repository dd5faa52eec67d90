"""CompeteSMoE (arXiv:2505.13380) against a loop over tokens and experts.

T tokens, E experts, K winners per token, D width of tokens and outputs.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.moe import Experts, MoEConfig, MoELayer, RoutingContext
from llava_compete.moe.elementwise import affinity
from llava_compete.moe.routers.compete import agreement
from tests.moe.reference import run_expert

T, E, K, D = 10, 5, 3, 8
THETA = 0.3
MASK = torch.tensor([True] * 6 + [False] * 2 + [True] * 2)
COMPETE = RoutingContext(MASK, competing=True)


@pytest.fixture(params=["paper", "outcome"])
def layer(request):
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    options = {"distillation": request.param, "theta": THETA}
    config = MoEConfig(num_experts=E, top_k=K, router="compete", router_options=options, seed=1)
    layer = MoELayer(experts, config, index=0).train()
    layer.competing = True
    layer.mask_T = MASK
    with torch.no_grad():
        layer.experts.down_proj.mul_(4)  # else the affinities are all near log 2
        layer.router.gate.weight.mul_(20)
    return layer


@pytest.fixture
def x_TD():
    return torch.randn(T, D)


def reference(layer, x_TD):
    """Output and losses of a competition step, one token and one expert at a time."""
    outputs, distillation, diversity, shares, wins, agreed = [], [], [], [], [], []
    for token, x_D in enumerate(x_TD):
        expert_outputs = [run_expert(layer.experts, e, x_D[None])[0] for e in range(E)]
        strength = [sum(F.softplus(o) for o in output) / D for output in expert_outputs]
        winners = sorted(range(E), key=lambda e: -strength[e].item())[:K]
        total = sum(strength[e] for e in winners)
        outputs.append(sum(strength[e] / total * expert_outputs[e] for e in winners))
        if not MASK[token]:
            continue
        gate_E = (layer.router.gate.weight @ x_D).softmax(dim=-1)
        target_E = torch.stack(strength).softmax(dim=-1)
        if layer.router.options.distillation == "paper":
            error = [(gate_E[e] - target_E[e].detach()) ** 2 for e in range(E)]
            distillation.append(sum(error) / E + THETA * sum(error[e] for e in winners) / K)
        else:
            target = [(strength[e] / total).detach() for e in winners]
            distillation.append(
                sum(w * (w / gate_E[e]).log() for w, e in zip(target, winners, strict=True))
            )
        pairs = [(i, j) for i in winners for j in winners if i != j]
        cosines = [F.cosine_similarity(expert_outputs[i], expert_outputs[j], 0) for i, j in pairs]
        diversity.append(sum(cosines) / (K * (K - 1)))
        shares.append(target_E)
        wins += winners
        router_choice = set(gate_E.topk(K).indices.tolist())
        agreed.append(len(router_choice & set(winners)) / K)
    count = int(MASK.sum())
    balance = sum(
        E * (wins.count(e) / (count * K)) * (sum(share[e] for share in shares) / count)
        for e in range(E)
    )
    losses = {
        "distillation": sum(distillation) / count,
        "diversity": sum(diversity) / count,
        "competition_balance": balance,
    }
    return torch.stack(outputs), losses, torch.tensor(sum(agreed) / count)


def gradients(layer, loss):
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return dict(zip(names, found, strict=True))


def test_a_competition_step_equals_the_loop(layer, x_TD):
    wanted, losses, agreed = reference(layer, x_TD)
    assert_close(layer(x_TD), wanted)
    assert set(layer.routing.losses) == set(losses)
    for name, value in losses.items():
        assert_close(layer.routing.losses[name], value, msg=lambda text, n=name: f"{n}: {text}")
    assert_close(layer.routing.metrics["agreement"], agreed)


@pytest.mark.parametrize("term", ["output", "distillation", "diversity", "competition_balance"])
def test_gradients_of_a_competition_step_equal_the_loop(layer, x_TD, term):
    wanted, losses, _ = reference(layer, x_TD)
    wanted_loss = wanted.square().sum() if term == "output" else losses[term]
    output = layer(x_TD)
    loss = output.square().sum() if term == "output" else layer.routing.losses[term]
    expected = gradients(layer, wanted_loss)
    for name, gradient in gradients(layer, loss).items():
        absent = gradient is None or not gradient.any()
        if expected[name] is None or not expected[name].any():
            assert absent, name
        else:
            assert_close(gradient, expected[name], msg=lambda text, n=name: f"{n}: {text}")


def test_affinity_is_the_mean_softplus_of_the_outputs_in_float32():
    outputs_TED = torch.randn(T, E, D).bfloat16()
    wanted = torch.log(1 + torch.exp(outputs_TED.double())).mean(dim=-1)
    got = affinity(outputs_TED)
    assert got.dtype == torch.float32
    assert_close(got, wanted.float())


def test_bfloat16_experts_that_differ_little_do_not_tie(layer, x_TD):
    seen = []
    layer.bfloat16()
    layer.experts.register_forward_hook(lambda module, args, out: seen.append(out))
    routing = layer.router(x_TD.bfloat16(), layer.experts, COMPETE)
    (competition,) = seen
    won_TK = F.softplus(competition.outputs_TKO.float()).mean(-1)
    assert_close(routing.weights_TK, (won_TK / won_TK.sum(-1, keepdim=True)).bfloat16())
    base_T1D = torch.randn(T, 1, 64)
    near_TED = (base_T1D * (1 + 0.01 * torch.randn(T, E, 64))).bfloat16()
    assert all(len(set(row)) == E for row in affinity(near_TED).tolist())
    assert any(len(set(row)) < E for row in affinity(near_TED).bfloat16().tolist())


def test_experts_are_called_once_with_all_and_the_winners_are_not_run_again(layer, x_TD):
    calls = []
    layer.experts.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args[1:], kwargs)), with_kwargs=True
    )
    layer(x_TD)
    assert calls == [((), {"winners": K, "losers_gradient": True})]


def test_a_router_step_runs_the_chosen_experts_only(layer, x_TD):
    calls = []
    layer.experts.register_forward_pre_hook(lambda module, args: calls.append(args[1:]))
    layer.competing = False
    layer(x_TD)
    ((ids_TK, *_),) = calls
    assert torch.equal(ids_TK, layer.routing.ids_TK)
    assert set(layer.routing.losses) == {"balance", "router_z"}


def test_distillation_trains_the_gate_and_no_expert(layer, x_TD):
    layer(x_TD)
    found = gradients(layer, layer.routing.losses["distillation"])
    assert found.pop("router.gate.weight").any()
    assert found
    assert all(gradient is None for gradient in found.values())


def test_the_language_loss_trains_winners_and_no_gate_in_a_competition_step(layer, x_TD):
    output = layer(x_TD)
    found = gradients(layer, output.square().sum())
    assert found["router.gate.weight"] is None
    assert found["experts.down_proj"].any()


def test_losers_are_trained_by_the_competition_balance_alone(layer):
    """All tokens alike: the same experts win everywhere, so the others lose everywhere."""
    output = layer(torch.randn(1, D).expand(T, D))
    winners = layer.routing.ids_TK[0]
    losers = [expert for expert in range(E) if expert not in winners.tolist()]
    losses = layer.routing.losses
    for loss in (output.square().sum(), losses["diversity"]):
        for name in ("experts.gate_proj", "experts.up_proj", "experts.down_proj"):
            gradient = gradients(layer, loss)[name]
            assert gradient[winners].abs().sum() > 0
            assert not gradient[losers].any()
    balance = gradients(layer, losses["competition_balance"])["experts.down_proj"]
    for expert in range(E):
        assert balance[expert].any()


def test_affinity_is_trained_through_the_winners_shares(layer, x_TD):
    routing = layer.router(x_TD, layer.experts, COMPETE)
    weights = gradients(layer, routing.weights_TK[:, 0].sum())
    assert weights["experts.down_proj"].any()


def test_one_winner_takes_weight_one_and_has_no_diversity(x_TD):
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    layer = MoELayer(experts, MoEConfig(num_experts=E, top_k=1), index=0).train()
    layer.competing = True
    layer(x_TD)
    assert torch.equal(layer.routing.weights_TK, torch.ones(T, 1))
    assert layer.routing.losses["diversity"] == 0


def test_upcycled_experts_tie_so_the_first_win_every_token(x_TD):
    """Why a run warms up with the plain router: a competition of copies decides nothing."""
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
    layer = MoELayer(experts, MoEConfig(num_experts=E, top_k=K), index=0).train()
    layer.competing = True
    output = layer(x_TD)
    assert_close(layer.routing.weights_TK, torch.full((T, K), 1 / K))
    assert_close(output, run_expert(experts, 0, x_TD))


@pytest.mark.parametrize("mask_T", [None, MASK])
def test_agreement_equals_the_overlap_of_sets(mask_T):
    router_TK = torch.rand(T, E).topk(K).indices
    winners_TK = torch.rand(T, E).topk(K).indices
    shares = [
        len(set(router) & set(winners)) / K
        for router, winners, kept in zip(
            router_TK.tolist(),
            winners_TK.tolist(),
            [True] * T if mask_T is None else mask_T.tolist(),
            strict=True,
        )
        if kept
    ]
    assert_close(agreement(router_TK, winners_TK, mask_T).item(), sum(shares) / len(shares))


def test_agreement_is_one_when_the_router_names_the_winners_in_any_order():
    winners_TK = torch.rand(T, E).topk(K).indices
    assert agreement(winners_TK.flip(-1), winners_TK, None) == 1
    assert agreement(torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), None) == 0


@pytest.mark.parametrize("detach", [False, True])
def test_detach_keeps_the_tasks_gradient_from_the_gate_on_router_steps(x_TD, detach):
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    config = MoEConfig(num_experts=E, top_k=K, router_options={"detach": detach})
    layer = MoELayer(experts, config, index=0).train()
    layer(x_TD).square().sum().backward(retain_graph=True)
    gate = layer.router.gate.weight
    assert (gate.grad is None) == detach
    assert experts.down_proj.grad.any()
    layer.routing.losses["balance"].backward()
    assert gate.grad.any()
