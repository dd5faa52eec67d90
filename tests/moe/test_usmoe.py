"""USMoE against a loop.  G sequences of S tokens, T = G*S, E experts, K a token, D width.

Scopes, padding, ties and generation: test_across.py.
"""

import pytest
import torch
from torch.testing import assert_close

from llava_compete import RoutingChange, load
from llava_compete.moe import ROUTERS, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.routers.usmoe import unified_score
from llava_compete.moe.sequences import Sequences
from tests import tiny

G, S, D = 3, 7, 8
T = G * S
MASK = torch.tensor([True] * 7 + [False] * 3 + [True] * 4 + [True] + [False] * 6)
CONTEXT = RoutingContext(mask_T=MASK, sequences=Sequences(S))
shapes = pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (5, 2), (3, 3), (8, 1)])
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def make_router(num_experts=4, top_k=2, **options):
    return ROUTERS["usmoe"](
        RouterSpec(
            width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0, options=options
        )
    )


def route(router, x_TD):
    """The routing with scores in the dtype of x."""
    logits_TE = router.gate(x_TD)
    return router.route(x_TD, logits_TE, logits_TE.softmax(dim=-1), CONTEXT)


def loop(weight_ED, x_TD, top_k, alpha):
    """{(token, expert): weight} and the balance loss of the formula, scalar by scalar."""
    num_experts, weights, probs = len(weight_ED), {}, {}
    for group in range(G):
        kept = [row for row in range(group * S, group * S + S) if MASK[row]]
        score = {}
        for row in kept:
            powers = [torch.exp(weight_ED[e] @ x_TD[row]) for e in range(num_experts)]
            for expert, power in enumerate(powers):
                probs[row, expert] = power / sum(powers)
                sigmoid = power / (1 + power)
                by_token = 2 / num_experts * sigmoid
                score[row, expert] = alpha * probs[row, expert] + (1 - alpha) * by_token
        best = sorted(score, key=lambda pair: -score[pair].item())[: len(kept) * top_k]
        weights.update({pair: score[pair] for pair in best})
    balance = 0.0
    for expert in range(num_experts):
        share = sum(pair[1] == expert for pair in weights) / len(weights)
        mean = sum(p for pair, p in probs.items() if pair[1] == expert) / int(MASK.sum())
        balance = balance + num_experts * share * mean
    return weights, balance


@shapes
@precisions
@pytest.mark.parametrize("alpha", [0.5, 0.0, 0.8])
def test_choice_weights_loss_and_gradients_equal_the_loop(num_experts, top_k, dtype, alpha):
    router = make_router(num_experts, top_k, alpha=alpha).to(dtype)
    with torch.no_grad():
        router.gate.weight.mul_(30)
    x_TD, share_TE = torch.randn(T, D, dtype=dtype), torch.randn(T, num_experts, dtype=dtype)
    routing = route(router, x_TD)
    (routing.weights_TK * share_TE).sum().backward(retain_graph=True)
    from_weights_ED = router.gate.weight.grad.double()
    router.gate.weight.grad = None
    routing.losses["balance"].backward()

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    weights, balance = loop(weight_ED, x_TD.double(), top_k, alpha)
    total = sum(value * share_TE[pair] for pair, value in weights.items())
    (wanted_ED,) = torch.autograd.grad(total, weight_ED, retain_graph=True)
    (wanted_balance_ED,) = torch.autograd.grad(balance, weight_ED)
    wanted_TE = torch.zeros(T, num_experts, dtype=torch.float64)
    for pair, value in weights.items():
        wanted_TE[pair] = value.detach()
    chosen_TE = routing.ids_TK != num_experts
    assert {tuple(pair) for pair in chosen_TE.nonzero().tolist()} == set(weights)
    assert (routing.ids_TK[chosen_TE] == chosen_TE.nonzero()[:, 1]).all()
    close = {"atol": 3e-6, "rtol": 1e-5}
    exact = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else close
    assert_close(routing.weights_TK.double(), wanted_TE, **exact)
    assert_close(from_weights_ED, wanted_ED, **exact)
    assert_close(routing.losses["balance"].double(), balance.detach(), **close)  # float32 always
    assert_close(router.gate.weight.grad.double(), wanted_balance_ED, **close)
    assert wanted_ED.norm() > 0.01


def test_both_halves_of_the_score_are_one_over_e_where_logits_are_zero():
    for alpha in (0.0, 0.5, 1.0):
        assert_close(unified_score(torch.zeros(2, 5), alpha), torch.full((2, 5), 0.2))


def test_a_token_of_large_logits_takes_places_from_one_of_small_ones():
    router, x_TD = make_router(2, 1), torch.zeros(2, D)
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = 1
    x_TD[:, 0] = torch.tensor([-3.0, 3.0])  # both tokens rank the two experts equal
    got = router(x_TD, None, RoutingContext())
    assert got.ids_TK.tolist() == [[2, 2], [0, 1]]
    assert got.metrics["without_expert"] == 0.5
    # By the softmax alone the tokens are alike, and of equal scores the first token's are taken.
    softmax = make_router(2, 1, alpha=1.0)
    softmax.load_state_dict(router.state_dict())
    assert softmax(x_TD, None, RoutingContext()).ids_TK.tolist() == [[0, 1], [2, 2]]


def test_scores_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        routing = make_router()(torch.randn(T, D), None, CONTEXT)
    assert routing.scores_TE.dtype == torch.float32
    assert routing.losses["balance"].dtype == torch.float32


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be between 0 and 1"):
        MoEConfig(router="usmoe", router_options={"alpha": alpha})


@pytest.mark.parametrize("name", ["usmoe", "expert_choice"])
def test_a_checkpoint_of_topk_is_evaluated_under_it_with_its_weights_untouched(tmp_path, name):
    path = tiny.make_checkpoint(tmp_path / "topk", router="topk")
    options = {"renormalise": True}
    plain, processor = load(path)
    other, _ = load(path, routing=RoutingChange(router=name, router_options=options))
    batch = tiny.make_batch(processor, [0, 1])
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    assert all(
        type(layer.router) is ROUTERS[name]
        for layers in other.moe_layers().values()
        for layer in layers
    )
    moved = (other(**batch).token_losses_A - plain(**batch).token_losses_A).abs().max()
    assert 0 < moved < 2
