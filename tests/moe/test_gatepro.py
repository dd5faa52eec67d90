"""GatePro against a loop.  T tokens, E experts, K chosen per token, D width."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, RoutingContext, losses
from llava_compete.moe.routers import RouterSpec, gatepro

T, E, K, D = 2000, 6, 2, 8
EXPERTS = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)


def make_router(name="gatepro", num_experts=E):
    return ROUTERS[name](RouterSpec(width=D, out_width=D, num_experts=num_experts, top_k=K, seed=0))


@torch.no_grad()
def partner_of(expert, weight_ED):
    others = [other for other in range(len(weight_ED)) if other != expert]
    return max(
        others, key=lambda other: F.cosine_similarity(weight_ED[expert], weight_ED[other], 0)
    )


def test_the_partner_is_the_most_similar_other_expert_whatever_the_lengths():
    for seed in range(20):
        weight_ED = torch.randn(E, D, generator=torch.Generator().manual_seed(seed))
        got = gatepro.partners(weight_ED).tolist()
        assert got == [partner_of(expert, weight_ED) for expert in range(E)]
        assert all(partner != expert for expert, partner in enumerate(got))
        scaled = weight_ED * torch.arange(1, E + 1)[:, None]
        assert gatepro.partners(scaled).tolist() == got


def test_experts_all_alike_still_have_another_as_partner():
    got = gatepro.partners(torch.ones(E, D)).tolist()
    assert all(partner != expert for expert, partner in enumerate(got))


@pytest.mark.parametrize("penalty", [1e-4, 0.05])
def test_ids_weights_and_losses_equal_the_loop(penalty, monkeypatch):
    monkeypatch.setattr(gatepro, "PENALTY", penalty)
    router, x_TD = make_router(), torch.randn(40, D)
    routing = router(x_TD, EXPERTS, RoutingContext())
    weight_ED = router.gate.weight
    rows = []
    for token, x_D in enumerate(x_TD):
        logits = [row_D @ x_D for row_D in weight_ED]
        lowered = [
            z - penalty if z < logits[partner_of(expert, weight_ED)] else z
            for expert, z in enumerate(logits)
        ]
        best = sorted(range(E), key=lambda expert: -lowered[expert].item())[:K]
        assert routing.ids_TK[token].tolist() == best
        chosen_K = torch.stack([lowered[expert] for expert in best])
        assert_close(routing.weights_TK[token], chosen_K.softmax(dim=-1))
        rows.append(torch.stack(lowered))
    logits_TE = torch.stack(rows)
    balance = losses.load_balance(logits_TE.softmax(dim=-1), routing.ids_TK)
    assert_close(routing.losses["balance"], balance)
    assert_close(routing.losses["router_z"], losses.router_z(logits_TE))


def test_with_lambda_zero_it_is_topk(monkeypatch):
    monkeypatch.setattr(gatepro, "PENALTY", 0.0)
    x_TD = torch.randn(T, D)
    got, wanted = (
        make_router(name)(x_TD, EXPERTS, RoutingContext()) for name in ("gatepro", "topk")
    )
    assert torch.equal(got.ids_TK, wanted.ids_TK)
    assert torch.equal(got.weights_TK, wanted.weights_TK)
    assert_close(got.losses, wanted.losses)


def test_parameters_are_those_of_topk():
    got, wanted = make_router().state_dict(), make_router("topk").state_dict()
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(got[name], value)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2])
def test_only_near_ties_change(penalty, monkeypatch):
    monkeypatch.setattr(gatepro, "PENALTY", penalty)
    x_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(0))
    router, plain = make_router(), make_router("topk")
    got, wanted = (
        module(x_TD, EXPERTS, RoutingContext()).ids_TK.sort(dim=-1).values
        for module in (router, plain)
    )
    changed_T = (got != wanted).any(dim=-1)
    logits_TE = plain.gate(x_TD).sort(dim=-1, descending=True).values
    margin_T = logits_TE[:, K - 1] - logits_TE[:, K]
    assert (margin_T[changed_T] <= penalty + 1e-7).all()
    if penalty == 1e-2:
        assert changed_T.any()
    assert changed_T.float().mean() < 50 * penalty


def test_an_expert_like_the_first_gives_way_to_one_that_is_not():
    router = make_router(num_experts=4)
    # Experts 0 and 1 are alike, and so are 2 and 3; 1 is ahead of 2 by half of lambda.
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = torch.tensor([1.0, 0.50005, 0.5, 0.0])
        router.gate.weight[:2, 1] = 1
        router.gate.weight[2:, 2] = 1
    x_TD = torch.zeros(1, D)
    x_TD[0, 0] = 1
    assert gatepro.partners(router.gate.weight).tolist() == [1, 0, 3, 2]
    assert router(x_TD, EXPERTS, RoutingContext()).ids_TK.tolist() == [[0, 2]]
    with torch.no_grad():
        router.gate.weight[1, 0] = 0.5002
    assert router(x_TD, EXPERTS, RoutingContext()).ids_TK.tolist() == [[0, 1]]


def test_one_expert_has_nobody_to_lose_to():
    router = ROUTERS["gatepro"](RouterSpec(width=D, out_width=D, num_experts=1, top_k=1, seed=0))
    x_TD = torch.randn(5, D)
    assert torch.equal(router.gate(x_TD), x_TD @ router.gate.weight.T)
