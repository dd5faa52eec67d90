"""DeepSeek-V3's routing against a loop.

B sequences of S tokens, T = B*S, E experts, R = E-1 routed, K for each token, J = K-1, D width.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete import load, save, upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec, shared_v3
from llava_compete.moe.routers.shared_v3 import sequence_balance
from llava_compete.moe.sequences import Sequences
from tests import tiny

B, S, D = 3, 6, 8
T = B * S
# A whole sequence, one with holes, one that is all padding.
MASK = torch.tensor([True] * 6 + [True, False, True, True, False, True] + [False] * 6)
EXPERTS = Experts(4, D, 12, D, activation="silu", gated=True, bias=False)
CASES = [
    (4, 2, {}),
    (6, 4, {"scaling": 2.5}),
    (9, 4, {"groups": 4, "groups_kept": 2}),
    (13, 3, {"groups": 3, "groups_kept": 1, "scaling": 0.5}),
    (5, 3, {"groups": 4, "groups_kept": 3}),  # groups of one
]
cases = pytest.mark.parametrize(("num_experts", "top_k", "options"), CASES)


def make_router(num_experts=4, top_k=2, **options):
    router = ROUTERS["shared_v3"](
        RouterSpec(
            width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0, options=options
        )
    )
    with torch.no_grad():
        router.gate.weight.mul_(30)  # at the start all scores are alike
    return router


def set_bias(router):
    """Biases that change choices: up to 0.4 either way."""
    generator = torch.Generator().manual_seed(1)
    steps_R = torch.randint(-400, 401, router.state_bias_R.shape, generator=generator)
    router.state_bias_R.copy_(steps_R)


def chosen(scores, biases, top_j, groups, groups_kept):
    """The routed experts of one token, by the paper's rule."""
    biased = [s + b for s, b in zip(scores, biases, strict=True)]
    size = len(scores) // groups
    group_score = {}
    for group in range(groups):
        members = sorted(biased[group * size : (group + 1) * size], reverse=True)
        group_score[group] = sum(members[:2])
    best_groups = sorted(group_score, key=lambda group: -group_score[group])[:groups_kept]
    allowed = [r for r in range(len(scores)) if r // size in best_groups]
    return sorted(allowed, key=lambda r: -biased[r])[:top_j]


def loop(weight_RD, biases, x_TD, top_k, *, groups=1, groups_kept=1, scaling=1.0):
    """Weights (T, E) and the sequence-wise balance of the formulas, number by number."""
    num_routed, top_j = len(weight_RD), top_k - 1
    weights_TE = torch.zeros(T, num_routed + 1, dtype=torch.float64)
    balances = []
    for sequence in range(B):
        kept = [t for t in range(sequence * S, (sequence + 1) * S) if MASK[t]]
        count, mean = [0] * num_routed, [0.0] * num_routed
        for token in range(sequence * S, (sequence + 1) * S):
            s = [1 / (1 + (-(weight_RD[r] @ x_TD[token])).exp()) for r in range(num_routed)]
            numbers = [value.item() for value in s]
            weights_TE[token, 0] = 0.5
            best = chosen(numbers, biases, top_j, groups, groups_kept)
            for r in best:
                share = s[r] / sum(s[other] for other in best)
                weights_TE[token, r + 1] = 0.5 * scaling * share
            unbiased = chosen(numbers, [0.0] * num_routed, top_j, 1, 1)
            for r in range(num_routed):
                if token in kept:
                    count[r] += r in unbiased
                    mean[r] = mean[r] + s[r] / sum(s) / len(kept)
        if kept:
            f = [num_routed / (top_j * len(kept)) * count[r] for r in range(num_routed)]
            balances.append(sum(f[r] * mean[r] for r in range(num_routed)))
    return weights_TE, sum(balances) / len(balances)


@cases
def test_choice_weights_loss_and_gradients_equal_the_loop(num_experts, top_k, options, precision):
    router = make_router(num_experts, top_k, **options).to(precision)
    set_bias(router)
    x_TD, random_TE = (torch.randn(T, n, dtype=precision) for n in (D, num_experts))
    routing = router(x_TD, EXPERTS, RoutingContext(mask_T=MASK, sequences=Sequences(S)))
    got_TE = torch.zeros(T, num_experts, dtype=precision)
    got_TE = got_TE.scatter(1, routing.ids_TK, routing.weights_TK)
    ((got_TE * random_TE).sum() + routing.losses["balance"]).backward()

    weight_RD = router.gate.weight.detach().double().requires_grad_()
    biases = [0.001 * steps for steps in router.state_bias_R.tolist()]
    wanted_TE, balance = loop(weight_RD, biases, x_TD.double(), top_k, **options)
    ((wanted_TE * random_TE).sum() + balance).backward()
    assert_close(got_TE, wanted_TE.to(precision))
    assert_close(routing.losses["balance"], balance.to(precision))
    assert_close(router.gate.weight.grad, weight_RD.grad.to(precision))
    if top_k < num_experts:  # else there is nothing to choose
        plain = make_router(num_experts, top_k, **options).to(precision)
        unbiased = plain(x_TD, EXPERTS, RoutingContext(mask_T=MASK, sequences=Sequences(S)))
        assert not torch.equal(unbiased.ids_TK, routing.ids_TK), "the bias is to change choices"


def test_the_bias_is_in_no_weight():
    router, x_TD = make_router(5, 3), torch.randn(T, D)
    set_bias(router)
    routing = router(x_TD, EXPERTS, RoutingContext())
    scores_TR = router.gate(x_TD).sigmoid()
    of_chosen_TJ = scores_TR.gather(1, routing.ids_TK[:, :-1] - 1)
    wanted_TJ = of_chosen_TJ / of_chosen_TJ.sum(dim=-1, keepdim=True) / 2
    assert_close(routing.weights_TK[:, :-1], wanted_TJ)


@pytest.mark.parametrize("level", [-300.0, 40.0])
def test_scores_that_float32_cannot_tell_apart_have_finite_weights_and_gradients(level):
    router = make_router(5, 3)
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = level + torch.arange(4)
    x_TD = torch.zeros(2, D)
    x_TD[:, 0] = 1
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert_close(routing.weights_TK.sum(dim=-1), torch.ones(2))
    (routing.weights_TK[:, 0].sum() + routing.losses["balance"]).backward()
    assert router.gate.weight.grad.isfinite().all()


def test_the_balance_of_a_batch_is_the_mean_of_its_sequences():
    share_TR = torch.rand(T, 5).softmax(dim=-1)
    ids_TJ = torch.stack([torch.randperm(5)[:2] for _ in range(T)])
    alone = [
        sequence_balance(share_TR[start : start + S], ids_TJ[start : start + S], Sequences(S), None)
        for start in range(0, T, S)
    ]
    assert_close(sequence_balance(share_TR, ids_TJ, Sequences(S), None), torch.stack(alone).mean())
    assert not torch.isclose(
        sequence_balance(share_TR, ids_TJ, Sequences(T), None), torch.stack(alone).mean()
    )


def test_the_balance_is_1_when_uniform():
    ids_TJ = torch.arange(10)[:, None] % 5
    assert_close(
        sequence_balance(torch.full((10, 5), 0.2), ids_TJ, Sequences(10), None), torch.tensor(1.0)
    )


def micro_batches(steps=4, count=3):
    """For every optimizer step its micro-batches: tokens and mask."""
    generator = torch.Generator().manual_seed(5)
    return [
        [
            (torch.randn(T, D, generator=generator), torch.rand(T, generator=generator) < 0.7)
            for _ in range(count)
        ]
        for _ in range(steps)
    ]


def test_the_bias_moves_once_a_step_by_the_load_of_all_its_micro_batches():
    router = make_router(6, 3).train()
    wanted = [0] * 5
    for step, batches in enumerate(micro_batches()):
        router.begin_step(step, 4)
        load = [0] * 5
        for x_TD, mask_T in batches:
            before_R = router.state_bias_R.clone()
            routing = router(x_TD, EXPERTS, RoutingContext(mask_T=mask_T))
            assert torch.equal(router.state_bias_R, before_R), "not before the step's end"
            for token in range(T):
                for expert in routing.ids_TK[token].tolist():
                    if mask_T[token] and expert:
                        load[expert - 1] += 1
        router.end_step()
        mean = sum(load) / len(load)
        wanted = [steps + (load[r] < mean) - (load[r] > mean) for r, steps in enumerate(wanted)]
        assert router.state_bias_R.tolist() == wanted
    assert any(wanted)
    assert_close(router.bias(), 0.001 * torch.tensor(wanted).float(), rtol=0, atol=0)


def test_loads_of_all_ranks_count(monkeypatch):
    router = make_router(4, 2).train()
    monkeypatch.setattr(
        shared_v3, "sum_over_ranks", lambda load_R: load_R + torch.tensor([1000, 0, 0])
    )
    router.begin_step(0, 1)
    router(torch.randn(T, D), EXPERTS, RoutingContext())
    router.end_step()
    assert router.state_bias_R.tolist() == [-1, 1, 1]


def test_a_rank_without_a_forward_takes_part_in_the_sum(monkeypatch):
    seen = []
    monkeypatch.setattr(shared_v3, "sum_over_ranks", lambda load_R: seen.append(load_R) or load_R)
    router = make_router(4, 2)
    router.begin_step(0, 1)
    router.end_step()
    assert seen[0].tolist() == [0, 0, 0]
    assert router.state_bias_R.tolist() == [0, 0, 0]


@pytest.mark.parametrize("way", ["evaluation", "recomputation", "frozen gate", "before the step"])
def test_what_is_no_training_of_the_router_moves_no_bias(way):
    router = make_router(4, 2).train(way != "evaluation")
    router.gate.requires_grad_(way != "frozen gate")
    if way != "before the step":
        router.begin_step(0, 1)
    context = RoutingContext(recording=way != "recomputation")
    router(torch.randn(T, D), EXPERTS, context)
    if way == "before the step":
        router.begin_step(0, 1)
    router.end_step()
    assert router.state_bias_R.tolist() == [0, 0, 0]


def test_the_bias_alone_evens_out_a_skewed_load():
    router = make_router(9, 2, bias_rate=0.01).train()
    x_TD = torch.randn(400, D) + 0.5  # favours some experts
    shares = []
    for step in range(150):
        router.begin_step(step, 150)
        ids_TK = router(x_TD, EXPERTS, RoutingContext()).ids_TK
        shares.append(ids_TK[:, 0].bincount(minlength=9)[1:].max() / 400)
        router.end_step()
    assert shares[0] > 2 / 8
    assert max(shares[-20:]) < 1.3 / 8


def test_a_cast_rounds_no_bias():
    router = make_router(4, 2)
    router.state_bias_R.copy_(torch.tensor([12345, -999, 3]))
    cast = make_router(4, 2).bfloat16()
    cast.load_state_dict(router.bfloat16().state_dict())
    assert cast.state_bias_R.dtype == torch.int64
    assert torch.equal(cast.bias(), 0.001 * torch.tensor([12345.0, -999.0, 3.0]))


def test_a_saved_model_keeps_its_bias(moe, tmp_path):
    model, processor = moe(router="shared_v3")
    layer = model.moe_layers()["language_model"][1]
    layer.router.state_bias_R.copy_(torch.tensor([5, -7, 2]))
    save(model, processor, tmp_path / "saved")
    again, _ = load(tmp_path / "saved", dtype="bfloat16")
    assert again.moe_layers()["language_model"][1].router.state_bias_R.tolist() == [5, -7, 2]
    assert again.moe_layers()["language_model"][0].router.state_bias_R.tolist() == [0, 0, 0]


def test_weights_sum_to_one_where_the_scaling_is_one(dense):
    assert make_router(scaling=1.0).sums_to_one
    router = make_router(scaling=2.5)
    assert not router.sums_to_one
    routing = router(torch.randn(T, D), EXPERTS, RoutingContext())
    assert_close(routing.weights_TK.sum(dim=-1), torch.full((T,), 0.5 + 1.25))
    model, _ = dense()
    configs = tiny.moe_configs(router="shared_v3", router_options={"scaling": 2.5})
    report = upcycle_model(model, configs)  # says how far the output moves, and does not refuse
    assert report.largest_difference > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"groups": 2, "groups_kept": 3}, "groups_kept=3 must be between 1 and groups=2"),
        ({"groups_kept": 0}, "groups_kept=0 must be between 1 and groups=1"),
        ({"scaling": 0.0}, r"scaling=0.0 must be positive"),
        ({"bias_rate": -0.1}, r"bias_rate=-0.1 must not be negative"),
        ({"groups": 3, "groups_kept": 3}, r"groups=3 must divide the 8 routed experts"),
        (
            {"groups": 4},
            r"top_k=4 needs 3 routed experts, and groups_kept=1 of groups=4 hold 2",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router="shared_v3", num_experts=9, top_k=4, router_options=options)


def test_the_ranking_has_the_bias_and_an_infinite_score_of_the_shared_expert():
    router, x_TD = make_router(4, 2), torch.randn(T, D)
    set_bias(router)
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert (routing.scores_TE[:, 0] == math.inf).all()
    assert_close(routing.scores_TE[:, 1:], router.gate(x_TD).sigmoid().detach() + router.bias())
