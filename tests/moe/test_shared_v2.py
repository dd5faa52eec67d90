"""A shared expert against a loop.

T tokens, E experts, K of them for each token, R = E-1 routed experts, D width.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete import upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from tests import tiny

T, D = 13, 8
MASK = torch.arange(T) % 4 != 2
EXPERTS = Experts(4, D, 12, D, activation="silu", gated=True, bias=False)
shapes = pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (6, 3), (3, 3), (2, 2)])
both = pytest.mark.parametrize("name", ["shared_v2", "shared_v3"])


def make_router(num_experts=4, top_k=2, name="shared_v2", scale=30.0):
    router = ROUTERS[name](
        RouterSpec(width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0)
    )
    with torch.no_grad():
        router.gate.weight.mul_(scale)  # at the start all scores are alike
    return router


def loop(weight_RD, x_TD, top_k):
    """Weights (T, E), balance and z-loss of the formulas, number by number."""
    num_routed = len(weight_RD)
    weights_TE = torch.zeros(T, num_routed + 1, dtype=torch.float64)
    count, mean, z_losses = [0] * num_routed, [0.0] * num_routed, []
    for token in range(T):
        powers = [(weight_RD[r] @ x_TD[token]).exp() for r in range(num_routed)]
        probs = [power / sum(powers) for power in powers]
        best = sorted(range(num_routed), key=lambda r: -probs[r].item())[: top_k - 1]
        weights_TE[token, 0] = 0.5
        for r in best:
            weights_TE[token, r + 1] = 0.5 * probs[r] / sum(probs[other] for other in best)
        if MASK[token]:
            z_losses.append(sum(powers).log() ** 2)
            for r in range(num_routed):
                count[r] += r in best
                mean[r] = mean[r] + probs[r]
    kept = len(z_losses)
    balance = sum(num_routed * count[r] / sum(count) * mean[r] / kept for r in range(num_routed))
    return weights_TE, {"balance": balance, "router_z": sum(z_losses) / kept}


def dense_weights(routing, num_experts):
    weights_TE = torch.zeros(len(routing.ids_TK), num_experts, dtype=routing.weights_TK.dtype)
    return weights_TE.scatter(1, routing.ids_TK, routing.weights_TK)


@shapes
def test_choice_weights_losses_and_gradients_equal_the_loop(num_experts, top_k, precision):
    router = make_router(num_experts, top_k).to(precision)
    x_TD, random_TE = (torch.randn(T, n, dtype=precision) for n in (D, num_experts))
    routing = router(x_TD, EXPERTS, RoutingContext(mask_T=MASK))
    got_TE = dense_weights(routing, num_experts)
    (got_TE * random_TE).sum().add(sum(routing.losses.values())).backward()

    weight_RD = router.gate.weight.detach().double().requires_grad_()
    wanted_TE, wanted = loop(weight_RD, x_TD.double(), top_k)
    ((wanted_TE * random_TE).sum() + sum(wanted.values())).backward()
    assert_close(got_TE, wanted_TE.to(precision))
    for name, value in wanted.items():
        assert_close(routing.losses[name], value.to(precision))
    assert_close(router.gate.weight.grad, weight_RD.grad.to(precision))


@both
def test_expert_0_takes_half_of_every_token_and_others_share_the_rest(name):
    routing = make_router(6, 3, name)(torch.randn(T, D), EXPERTS, RoutingContext())
    assert ((routing.ids_TK == 0).sum(dim=-1) == 1).all()
    assert_close(dense_weights(routing, 6)[:, 0], torch.full((T,), 0.5))
    assert_close(routing.weights_TK.sum(dim=-1), torch.ones(T))


@both
def test_the_first_column_is_the_routers_first_choice(name):
    router, x_TD = make_router(6, 3, name), torch.randn(T, D)
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert torch.equal(routing.ids_TK[:, 0], router.gate(x_TD).argmax(dim=-1) + 1)
    assert (routing.scores_TE[:, 0] == math.inf).all()
    assert torch.equal(routing.scores_TE[:, 1:].argmax(dim=-1) + 1, routing.ids_TK[:, 0])


@both
def test_the_gate_has_a_row_for_each_routed_expert(name):
    assert make_router(6, 3, name).gate.weight.shape == (5, D)


@both
def test_one_expert_a_token_is_refused(name):
    with pytest.raises(ValueError, match=r"top_k=1 must be at least 2.*router topk"):
        MoEConfig(router=name, num_experts=4, top_k=1)


@both
@pytest.mark.parametrize("values", [{}, {"num_experts": 2}, {"num_experts": 5, "top_k": 4}])
def test_an_upcycled_model_is_the_dense_one(dense, name, values):
    model, _ = dense()
    report = upcycle_model(model, tiny.moe_configs(router=name, **values))  # refuses a change
    assert report.largest_difference < 1e-5 * report.largest_logit
