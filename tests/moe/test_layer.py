"""T tokens, E experts, K chosen per token, D width in, O width out."""

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, MoELayer, Router, Routing
from tests.moe.reference import run_expert

B, L, E, K, D, OUT, VOCABULARY = 2, 5, 4, 2, 8, 12, 6
T = B * L
MASK = torch.tensor([True] * 3 + [False] * 2 + [True] * 5)
every_router = pytest.mark.parametrize("router", ROUTERS)
every_step = pytest.mark.parametrize("competing", [False, True], ids=["router", "competition"])


def make_layer(router="compete", *, index=0, competing=False, **values):
    experts = Experts(E, D, 16, OUT, activation="gelu", gated=False, bias=True)
    config = MoEConfig(num_experts=E, top_k=K, router=router, **values)
    surroundings = {"vocab_size": VOCABULARY if ROUTERS[router].needs_token_ids else None}
    if ROUTERS[router].needs_previous:
        surroundings["previous"] = MoELayer(experts, config, index=index + 100)
        surroundings["previous"].first_choice_T = torch.arange(T) % E
    layer = MoELayer(experts, config, index=index, **surroundings).train()
    layer.competing = competing
    layer.token_ids_T = torch.arange(T) % VOCABULARY - 1  # -1: an image token
    return layer


@every_router
@every_step
def test_output_is_the_weighted_sum_of_the_chosen_experts(router, competing):
    layer, x_BLD = make_layer(router, competing=competing), torch.randn(B, L, D)
    y_BLO = layer(x_BLD)
    assert y_BLO.shape == (B, L, OUT)
    ids_TK, weights_TK = layer.routing.ids_TK, layer.routing.weights_TK
    for token in range(T):
        x_1D = x_BLD.view(T, D)[token : token + 1]
        wanted = torch.zeros(OUT)
        for expert, weight in zip(ids_TK[token].tolist(), weights_TK[token], strict=True):
            if expert < E:
                wanted = wanted + weight * run_expert(layer.experts, expert, x_1D)[0]
        if layer.routing.residual_TO is not None:
            wanted = wanted + layer.routing.residual_TO[token]
        assert_close(y_BLO.view(T, OUT)[token], wanted)


@every_router
@every_step
def test_identical_experts_give_what_one_of_them_gives(router, competing):
    layer, x_BLD = make_layer(router, competing=competing), torch.randn(B, L, D)
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
    y_TO = layer(x_BLD).view(T, OUT)
    wanted_TO = run_expert(layer.experts, 0, x_BLD.view(T, D))
    if not ROUTERS[router].sums_to_one:
        wanted_TO = wanted_TO * layer.routing.weights_TK.sum(dim=-1, keepdim=True)
    assert_close(y_TO, wanted_TO)


@every_router
@every_step
def test_batch_order_changes_nothing(router, competing):
    layer, x_BLD = make_layer(router, competing=competing), torch.randn(B, L, D)
    layer.mask_T = MASK
    plain, losses = layer(x_BLD), layer.routing.losses
    layer.mask_T = MASK.view(B, L).flip(0).reshape(-1)
    layer.token_ids_T = layer.token_ids_T.view(B, L).flip(0).reshape(-1)
    for before in layer._previous:
        before.first_choice_T = before.first_choice_T.view(B, L).flip(0).reshape(-1)
    assert_close(layer(x_BLD.flip(0)), plain.flip(0))
    assert_close(layer.routing.losses, losses)


def test_any_leading_dimensions_are_kept():
    layer = make_layer()
    for shape in ((D,), (3, D), (2, 3, 4, D)):
        assert layer(torch.randn(shape)).shape == (*shape[:-1], OUT)


def test_an_evaluation_between_two_steps_does_not_compete():
    layer, x_BLD = make_layer(competing=True), torch.randn(B, L, D)
    layer(x_BLD)
    assert "distillation" in layer.routing.losses
    trained = layer.eval()(x_BLD)
    assert "distillation" not in layer.routing.losses
    layer.competing = False
    assert torch.equal(layer.train()(x_BLD), trained)


def test_competition_does_not_depend_on_the_state_of_autograd():
    layer, x_BLD = make_layer(competing=True), torch.randn(B, L, D)
    recorded = layer(x_BLD)
    with torch.no_grad():
        assert torch.equal(layer(x_BLD), recorded)
    assert "distillation" in layer.routing.losses


def test_step_state_outlives_the_forward_as_recomputation_needs():
    layer, x_BLD = make_layer(competing=True), torch.randn(B, L, D)
    layer.mask_T = MASK
    layer(x_BLD)
    first = layer.routing
    layer(x_BLD)
    assert torch.equal(layer.routing.ids_TK, first.ids_TK)
    for name, value in first.losses.items():
        assert torch.equal(layer.routing.losses[name], value)


def test_outputs_of_a_competition_are_not_held_after_the_forward():
    layer = make_layer(competing=True)
    layer(torch.randn(B, L, D))
    assert layer.routing.outputs_TKO is None


def test_the_mask_reaches_the_losses():
    layer, x_BLD = make_layer(), torch.randn(B, L, D)
    layer(x_BLD)
    unmasked = layer.routing.losses["router_z"]
    layer.mask_T = MASK
    layer(x_BLD)
    masked = layer.routing.losses["router_z"]
    layer.mask_T = None
    layer(x_BLD.view(T, D)[MASK])
    assert_close(masked, layer.routing.losses["router_z"])
    assert not torch.equal(masked, unmasked)


def test_load_is_each_experts_share_of_the_kept_choices():
    layer = make_layer()
    layer.mask_T = MASK
    layer(torch.randn(B, L, D))
    chosen = layer.routing.ids_TK[MASK].flatten().tolist()
    wanted = torch.tensor([chosen.count(expert) / len(chosen) for expert in range(E)])
    assert_close(layer.load_E(), wanted)
    assert_close(layer.load_E().sum(), torch.tensor(1.0))


def test_gates_of_two_layers_differ_and_a_config_seed_moves_them_all():
    gates = [
        make_layer(index=index, seed=seed).router.gate.weight
        for seed in (0, 10)
        for index in (0, 1)
    ]
    for i, first in enumerate(gates):
        for second in gates[i + 1 :]:
            assert not torch.equal(first, second)
    assert torch.equal(make_layer(index=1, seed=0).router.gate.weight, gates[1])


def test_a_router_that_names_no_expert_drops_the_token(monkeypatch):
    class Dropping(Router):
        def forward(self, x_TD, experts, context):
            ids_TK = torch.full((len(x_TD), K), E)
            weights_TK = torch.zeros(len(x_TD), K)
            ids_TK[1:], weights_TK[1:] = 0, 1 / K
            return Routing(ids_TK, weights_TK, {}, {}, scores_TE=torch.zeros(len(x_TD), E))

    monkeypatch.setitem(ROUTERS, "dropping", Dropping)
    layer, x_TD = make_layer("dropping"), torch.randn(T, D)
    y_TO = layer(x_TD)
    assert torch.equal(y_TO[0], torch.zeros(OUT))
    assert_close(y_TO[1:], run_expert(layer.experts, 0, x_TD[1:]))
    assert_close(layer.load_E(), torch.tensor([1.0, 0, 0, 0]))


@every_router
@every_step
def test_autocast_stays_near_float32_and_keeps_losses_in_float32(router, competing):
    layer, x_BLD = make_layer(router, competing=competing), torch.randn(B, L, D)
    wanted, ids_TK = layer(x_BLD), layer.routing.ids_TK
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x_BLD)
    same_T = (layer.routing.ids_TK == ids_TK).all(dim=-1)
    assert same_T.any()
    assert_close(
        got.float().view(T, OUT)[same_T], wanted.view(T, OUT)[same_T], atol=0.03, rtol=0.03
    )
    for value in layer.routing.losses.values():
        assert value.dtype == torch.float32


@every_router
@pytest.mark.parametrize("rank", [1, 2, E])
def test_a_weak_pass_gives_what_the_expert_of_that_rank_gives_alone(router, rank):
    layer, x_BLD = make_layer(router), torch.randn(B, L, D)
    strong_BLO = layer(x_BLD)
    scores_TE, num_columns = layer.routing.scores_TE, layer.routing.ids_TK.shape[1]
    layer.weak_rank = rank
    y_TO = layer(x_BLD).view(T, OUT)
    for token in range(T):
        order = sorted(range(E), key=lambda e: -scores_TE[token, e].item())
        if scores_TE[token, order[rank - 1]] == -torch.inf:
            continue  # a router that masks experts does not rank them
        x_1D = x_BLD.view(T, D)[token : token + 1]
        wanted = run_expert(layer.experts, order[rank - 1], x_1D)[0]
        if layer.routing.residual_TO is not None:
            wanted = wanted + layer.routing.residual_TO[token]
        assert_close(y_TO[token], wanted)
    layer.weak_rank = None
    assert torch.equal(layer(x_BLD), strong_BLO)
    assert layer.routing.ids_TK.shape[1] == num_columns
