"""AdaMoE against a loop.

T tokens, E experts, M null experts, N = E+M, C choices of a token, D width.
"""

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.routers.adamoe import AdaMoEOptions, null_balance

T, D = 40, 8
MASK = torch.arange(T) % 5 != 3
EXPERTS = Experts(4, D, 12, D, activation="silu", gated=True, bias=False)
CASES = [  # E, K, options, M, C
    (4, 2, {}, 4, 4),
    (6, 1, {}, 6, 2),
    (8, 2, {"null_experts": 4}, 4, 3),
    (8, 2, {"null_experts": 8, "choices": 3}, 8, 3),  # the paper's for Mixtral
    (3, 3, {"null_experts": 2}, 2, 5),
]
cases = pytest.mark.parametrize(("num_experts", "top_k", "options", "nulls", "choices"), CASES)


def make_router(num_experts=4, top_k=2, **options):
    router = ROUTERS["adamoe"](
        RouterSpec(
            width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0, options=options
        )
    )
    with torch.no_grad():
        router.gate.weight.mul_(30)  # at the start all logits are alike
    return router


def loop(weight_ND, x_TD, num_experts, choices):
    """Weights (T, E), the balance loss and experts a token, number by number."""
    num_all = len(weight_ND)
    weights_TE = torch.zeros(T, num_experts, dtype=torch.float64)
    count, mean, taken = [0] * num_all, [0.0] * num_all, []
    for token in range(T):
        powers = [(weight_ND[i] @ x_TD[token]).exp() for i in range(num_all)]
        probs = [power / sum(powers) for power in powers]
        best = sorted(range(num_all), key=lambda i: -probs[i].item())[:choices]
        real = [i for i in best if i < num_experts]
        for i in real:
            weights_TE[token, i] = probs[i] / sum(probs[other] for other in real)
        if MASK[token]:
            taken.append(len(real))
            for i in range(num_all):
                count[i] += i in best
                mean[i] = mean[i] + probs[i]
    load = [value / sum(count) for value in count]
    null_load = sum(load[num_experts:]) / (num_all - num_experts)
    load[num_experts:] = [null_load] * (num_all - num_experts)
    balance = num_all * sum(load[i] * mean[i] / len(taken) for i in range(num_all))
    return weights_TE, balance, sum(taken) / len(taken)


@cases
def test_choice_weights_loss_and_gradients_equal_the_loop(
    num_experts, top_k, options, nulls, choices, precision
):
    router = make_router(num_experts, top_k, **options).to(precision)
    assert router.gate.weight.shape == (num_experts + nulls, D)
    x_TD, random_TE = (torch.randn(T, n, dtype=precision) for n in (D, num_experts))
    routing = router(x_TD, EXPERTS, RoutingContext(mask_T=MASK))
    ((routing.weights_TK * random_TE).sum() + routing.losses["balance"]).backward()

    weight_ND = router.gate.weight.detach().double().requires_grad_()
    wanted_TE, balance, per_token = loop(weight_ND, x_TD.double(), num_experts, choices)
    ((wanted_TE * random_TE).sum() + balance).backward()
    assert_close(routing.weights_TK, wanted_TE.to(precision))
    chosen_TE = routing.ids_TK == torch.arange(num_experts)
    assert torch.equal(chosen_TE, wanted_TE > 0)
    assert (routing.ids_TK[~chosen_TE] == num_experts).all()
    assert_close(routing.losses["balance"], balance.to(precision))
    assert routing.metrics["experts_per_token"].item() == pytest.approx(per_token)
    assert_close(router.gate.weight.grad, weight_ND.grad.to(precision))
    most = T * min(choices, num_experts)
    assert routing.most_pairs == (most if most < T * num_experts else None)


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (8, 2), (6, 1)])
def test_under_even_load_a_token_has_k_experts_in_the_mean(num_experts, top_k):
    x_TD = torch.randn(20_000, 64)
    spec = RouterSpec(width=64, out_width=D, num_experts=num_experts, top_k=top_k, seed=0)
    routing = ROUTERS["adamoe"](spec)(x_TD, EXPERTS, RoutingContext())
    taken_T = (routing.ids_TK < num_experts).sum(dim=-1)
    assert taken_T.float().mean().item() == pytest.approx(top_k, abs=0.1)
    assert taken_T.min() < top_k < taken_T.max()


def only_nulls():
    """A router of 4 experts, and two tokens: the first chooses nulls alone, the second experts."""
    router = make_router(4, 2)
    x_TD = torch.zeros(2, D)
    x_TD[0, 0], x_TD[1, 0] = -1, 1
    with torch.no_grad():
        router.gate.weight[:4, 0], router.gate.weight[4:, 0] = 5, -5
    return router, x_TD


def test_a_token_with_null_choices_alone_has_no_expert_and_finite_gradients():
    router, x_TD = only_nulls()
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert routing.ids_TK.tolist() == [[4] * 4, [0, 1, 2, 3]]
    assert torch.equal(routing.weights_TK[0], torch.zeros(4))
    assert_close(routing.weights_TK[1].sum(), torch.tensor(1.0))
    assert routing.metrics["without_expert"] == 0.5
    assert routing.metrics["experts_per_token"] == 2
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        EXPERTS(x_TD, routing.ids_TK, routing.weights_TK, routing.most_pairs).sum().backward()
    assert router.gate.weight.grad.isfinite().all()


def test_a_null_expert_far_above_leaves_the_real_ones_their_ratio():
    router = make_router(4, 2)
    x_TD = torch.zeros(1, D)
    x_TD[0, 0] = 1
    with torch.no_grad():
        router.gate.weight[:, 0] = torch.tensor([1.0, 2, 3, 4, 500, -9, -9, -9])
    routing = router(x_TD, EXPERTS, RoutingContext())
    wanted_E = torch.tensor([float("-inf"), 2, 3, 4]).softmax(dim=-1)
    assert_close(routing.weights_TK[0], wanted_E)


def test_balance_does_not_ask_which_null_expert_is_named():
    probs_TN = torch.randn(T, 7).softmax(dim=-1)
    probs_TN[:, 4:] = probs_TN[:, 4:].mean(dim=-1, keepdim=True)
    spread_TC = torch.stack([torch.arange(T) % 4, 4 + torch.arange(T) % 3], dim=1)
    same_TC = torch.stack([torch.arange(T) % 4, torch.full((T,), 5)], dim=1)
    assert_close(null_balance(probs_TN, spread_TC, 4), null_balance(probs_TN, same_TC, 4))
    more_TC = torch.stack([torch.full((T,), 6), torch.full((T,), 5)], dim=1)
    assert null_balance(probs_TN, more_TC, 4) != null_balance(probs_TN, same_TC, 4)


def test_balance_is_1_when_uniform():
    ids_TC = torch.stack([torch.arange(T) % 8, (torch.arange(T) + 4) % 8], dim=1)
    assert_close(null_balance(torch.full((T, 8), 1 / 8), ids_TC, 4), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_experts": 0}, "null_experts=0 must be at least 1"),
        ({"choices": 0}, "choices=0 must be at least 1"),
        ({"null_experts": 3}, r"top_k=2 .*null_experts=3, which is no whole number"),
        ({"choices": 9}, r"choices=9 must be at most 8: num_experts=4 and null_experts=4"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router="adamoe", num_experts=4, top_k=2, router_options=options)


def test_the_papers_figure_takes_4_of_4_experts_and_4_nulls_where_top_2_was():
    assert AdaMoEOptions().nulls(4) == 4
    assert AdaMoEOptions().chosen(4, 2) == 4
