"""Expert choice against a loop.  G sequences of S tokens, T = G*S, E experts, K a token, D width.

Scopes, padding, ties and generation: test_across.py.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.sequences import Sequences

G, S, D = 3, 7, 8
T = G * S
MASK = torch.tensor([True] * 7 + [False] * 3 + [True] * 4 + [True] + [False] * 6)
CONTEXT = RoutingContext(mask_T=MASK, sequences=Sequences(S))
shapes = pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (5, 2), (3, 3), (8, 1)])
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def make_router(num_experts=4, top_k=2, **options):
    return ROUTERS["expert_choice"](
        RouterSpec(
            width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0, options=options
        )
    )


def route(router, x_TD):
    """Weights and chosen pairs (T, E); scores in the dtype of x."""
    logits_TE = router.gate(x_TD)
    return router.route(x_TD, logits_TE, logits_TE.softmax(dim=-1), CONTEXT)


def loop(weight_ED, x_TD, top_k, renormalise):
    """{(token, expert): weight} of the formula, scalar by scalar."""
    num_experts = len(weight_ED)
    weights = {}
    for group in range(G):
        kept = [row for row in range(group * S, group * S + S) if MASK[row]]
        score = {}
        for row in kept:
            powers = [torch.exp(weight_ED[e] @ x_TD[row]) for e in range(num_experts)]
            for expert in range(num_experts):
                score[row, expert] = powers[expert] / sum(powers)
        for expert in range(num_experts):
            order = sorted(kept, key=lambda row: -score[row, expert].item())
            for row in order[: math.ceil(len(kept) * top_k / num_experts)]:
                weights[row, expert] = score[row, expert]
    if renormalise:
        for row in {row for row, _ in weights}:
            mine = [pair for pair in weights if pair[0] == row]
            total = sum(weights[pair] for pair in mine)
            weights.update({pair: weights[pair] / total for pair in mine})
    return weights


@shapes
@precisions
@pytest.mark.parametrize("renormalise", [False, True])
def test_choice_weights_and_gradients_equal_the_loop(num_experts, top_k, dtype, renormalise):
    router = make_router(num_experts, top_k, renormalise=renormalise).to(dtype)
    with torch.no_grad():
        router.gate.weight.mul_(30)
    x_TD, share_TE = torch.randn(T, D, dtype=dtype), torch.randn(T, num_experts, dtype=dtype)
    routing = route(router, x_TD)
    (routing.weights_TK * share_TE).sum().backward()

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    weights = loop(weight_ED, x_TD.double(), top_k, renormalise)
    sum(value * share_TE[pair] for pair, value in weights.items()).backward()
    wanted_TE = torch.zeros(T, num_experts, dtype=torch.float64)
    for pair, value in weights.items():
        wanted_TE[pair] = value.detach()
    chosen_TE = routing.ids_TK != num_experts
    assert {tuple(pair) for pair in chosen_TE.nonzero().tolist()} == set(weights)
    assert (routing.ids_TK[chosen_TE] == chosen_TE.nonzero()[:, 1]).all()
    exact = (
        {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 3e-6, "rtol": 1e-5}
    )
    assert_close(routing.weights_TK.double(), wanted_TE, **exact)
    assert_close(router.gate.weight.grad.double(), weight_ED.grad, **exact)
    assert weight_ED.grad.norm() > 0.01
    assert routing.losses == {}


def test_a_forward_is_the_route_of_its_float32_logits():
    router, x_TD = make_router(), torch.randn(T, D)
    got, wanted = router(x_TD, None, CONTEXT), route(router, x_TD)
    assert torch.equal(got.ids_TK, wanted.ids_TK)
    assert_close(got.weights_TK, wanted.weights_TK)
    with torch.autocast("cpu", torch.bfloat16):
        assert router(x_TD, None, CONTEXT).scores_TE.dtype == torch.float32


def test_every_expert_gets_as_many_tokens():
    x_TD = 30 * torch.randn(T, D)
    ids_TK = make_router()(x_TD, None, RoutingContext(sequences=Sequences(S))).ids_TK
    counts_GE = (ids_TK != 4).view(G, S, 4).sum(dim=1)
    assert (counts_GE == math.ceil(S * 2 / 4)).all()


def test_it_has_no_loss_and_refuses_weights_of_one():
    assert MoEConfig(router="expert_choice").loss_weights == {}
    with pytest.raises(ValueError, match=r"loss_weights names \['balance'\]"):
        MoEConfig(router="expert_choice", loss_weights={"balance": 0.01})
