"""Sigmoid gating against a loop.  T tokens, E experts, K chosen per token, D width."""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, RoutingContext, losses
from llava_compete.moe.routers import RouterSpec

T, E, K, D = 11, 5, 2, 8
EXPERTS = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)


@pytest.fixture
def router():
    return ROUTERS["sigmoid"](RouterSpec(width=D, out_width=D, num_experts=E, top_k=K, seed=0))


def test_weights_are_the_largest_sigmoids_over_their_sum(router):
    x_TD = 30 * torch.randn(T, D)
    routing = router(x_TD, EXPERTS, RoutingContext())
    for x_D, ids_K, weights_K in zip(x_TD, routing.ids_TK, routing.weights_TK, strict=True):
        logits = (router.gate.weight @ x_D).tolist()
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
        best = sorted(range(E), key=lambda expert: -scores[expert])[:K]
        assert ids_K.tolist() == best
        total = sum(scores[expert] for expert in best)
        assert_close(weights_K, torch.tensor([scores[expert] / total for expert in best]))


def test_balance_is_on_the_softmax_and_not_on_the_sigmoids(router):
    x_TD = 30 * torch.randn(T, D)
    routing = router(x_TD, EXPERTS, RoutingContext())
    logits_TE = x_TD @ router.gate.weight.T
    wanted = losses.load_balance(logits_TE.softmax(dim=-1), routing.ids_TK)
    assert_close(routing.losses["balance"], wanted)
    sigmoids_TE = logits_TE.sigmoid()
    other = losses.load_balance(sigmoids_TE / sigmoids_TE.sum(-1, keepdim=True), routing.ids_TK)
    assert not torch.allclose(routing.losses["balance"], other, rtol=1e-3)


@pytest.mark.parametrize("level", [-300.0, 40.0])
def test_scores_that_float32_cannot_tell_apart_still_route_by_their_order(router, level):
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = level + torch.arange(E)
    x_TD = torch.zeros(1, D)
    x_TD[0, 0] = 1
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert routing.ids_TK.tolist() == [[E - 1, E - 2]]
    # Far below 0 a sigmoid is exp(z), far above it is 1.
    wanted = torch.tensor([1.0, math.exp(-1.0) if level < 0 else 1.0])
    assert_close(routing.weights_TK[0], wanted / wanted.sum())
    routing.weights_TK[0, 0].backward()
    assert router.gate.weight.grad.isfinite().all()
