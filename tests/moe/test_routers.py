"""What every router must do; a new entry in ROUTERS is tested by being there.

T tokens, E experts, K chosen per token, D width.
"""

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, RoutingContext
from llava_compete.moe.config import DEFAULT_LOSS_WEIGHTS
from llava_compete.moe.routers import RouterOptions

T, E, K, D = 11, 4, 2, 8
MASK = torch.arange(T) < 8
every_router = pytest.mark.parametrize("name", ROUTERS)
every_step = pytest.mark.parametrize("competing", [False, True], ids=["router", "competition"])


def make_router(name, seed=0, top_k=K):
    return ROUTERS[name](
        RouterOptions(width=D, num_experts=E, top_k=top_k, seed=seed, distillation_theta=0.1)
    )


def make_experts():
    return Experts(E, D, 12, D, activation="silu", gated=True, bias=False)


@every_router
@every_step
@pytest.mark.parametrize("top_k", [1, K, E])
def test_shapes_dtypes_and_names_are_those_of_the_contract(name, competing, top_k):
    routing = make_router(name, top_k=top_k)(
        torch.randn(T, D), make_experts(), RoutingContext(None, competing)
    )
    assert routing.ids_TK.shape == routing.weights_TK.shape == (T, top_k)
    assert routing.ids_TK.dtype == torch.int64
    assert routing.ids_TK.min() >= 0
    assert routing.ids_TK.max() <= E
    assert set(routing.losses) <= set(DEFAULT_LOSS_WEIGHTS)
    for value in routing.losses.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
    for value in routing.metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
    if routing.outputs_TKD is not None:
        assert routing.outputs_TKD.shape == (T, top_k, D)


@every_router
@every_step
def test_weights_of_a_token_are_positive_and_sum_to_one(name, competing):
    routing = make_router(name)(
        10 * torch.randn(T, D), make_experts(), RoutingContext(None, competing)
    )
    assert (routing.weights_TK >= 0).all()
    assert_close(routing.weights_TK.sum(dim=-1), torch.ones(T))
    none_TK = routing.ids_TK == E
    assert torch.equal(routing.weights_TK[none_TK], torch.zeros(int(none_TK.sum())))


@every_router
@every_step
def test_an_expert_is_chosen_once_at_most_by_a_token(name, competing):
    routing = make_router(name)(torch.randn(T, D), make_experts(), RoutingContext(None, competing))
    for ids_K in routing.ids_TK.tolist():
        chosen = [expert for expert in ids_K if expert != E]
        assert len(chosen) == len(set(chosen))


@every_router
@every_step
def test_outputs_handed_back_are_those_of_the_chosen_experts(name, competing):
    experts, x_TD = make_experts(), torch.randn(T, D)
    routing = make_router(name)(x_TD, experts, RoutingContext(None, competing))
    if routing.outputs_TKD is not None:
        assert_close(routing.outputs_TKD, experts(x_TD, routing.ids_TK))


@every_router
@every_step
def test_the_order_of_tokens_changes_nothing(name, competing):
    router, experts, x_TD = make_router(name), make_experts(), torch.randn(T, D)
    order = torch.randperm(T)
    plain = router(x_TD, experts, RoutingContext(MASK, competing))
    mixed = router(x_TD[order], experts, RoutingContext(MASK[order], competing))
    assert torch.equal(mixed.ids_TK, plain.ids_TK[order])
    assert_close(mixed.weights_TK, plain.weights_TK[order])
    for values in ("losses", "metrics"):
        assert_close(getattr(mixed, values), getattr(plain, values))


@every_router
@every_step
@pytest.mark.parametrize("padding", [0.0, 50.0])
def test_padding_changes_neither_the_kept_tokens_nor_the_losses(name, competing, padding):
    router, experts, x_TD = make_router(name), make_experts(), torch.randn(T, D)
    kept = x_TD[MASK]
    x_TD[~MASK] = padding
    padded = router(x_TD, experts, RoutingContext(MASK, competing))
    alone = router(kept, experts, RoutingContext(None, competing))
    assert torch.equal(padded.ids_TK[MASK], alone.ids_TK)
    assert_close(padded.weights_TK[MASK], alone.weights_TK)
    for values in ("losses", "metrics"):
        assert_close(getattr(padded, values), getattr(alone, values))


@every_router
@every_step
def test_a_step_with_no_kept_token_gives_zero_losses_and_zero_gate_gradients(name, competing):
    router, experts = make_router(name), make_experts()
    routing = router(
        torch.randn(T, D), experts, RoutingContext(torch.zeros(T, dtype=torch.bool), competing)
    )
    total = torch.stack(list(routing.losses.values())).sum()
    assert total == 0
    total.backward()
    for parameter in router.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@every_router
@every_step
def test_gradient_reaches_every_parameter_of_the_router(name, competing):
    router, experts, x_TD = make_router(name), make_experts(), torch.randn(T, D)
    routing = router(x_TD, experts, RoutingContext(None, competing))
    outputs_TKD = routing.outputs_TKD
    if outputs_TKD is None:
        outputs_TKD = experts(x_TD, routing.ids_TK)
    y_TD = torch.einsum("tk,tkd->td", routing.weights_TK, outputs_TKD)
    (y_TD.square().sum() + sum(routing.losses.values())).backward()
    for parameter in router.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@every_router
def test_initial_weights_come_from_the_seed_alone_and_differ_between_seeds(name):
    first = make_router(name, seed=3)
    torch.manual_seed(99)
    again, other = make_router(name, seed=3), make_router(name, seed=4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert not torch.equal(value, other.state_dict()[key])


@every_router
def test_reset_parameters_restores_the_initial_weights_without_touching_the_global_generator(name):
    router = make_router(name)
    before = {key: value.clone() for key, value in router.state_dict().items()}
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.zero_()
    state = torch.get_rng_state()
    router.reset_parameters()
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in router.state_dict().items():
        assert torch.equal(value, before[key])


@every_router
def test_a_router_can_be_built_on_the_meta_device(name):
    with torch.device("meta"):
        router = make_router(name)
    assert all(parameter.is_meta for parameter in router.parameters())


@every_router
@every_step
def test_bfloat16_tokens_get_bfloat16_weights_and_float32_losses(name, competing):
    router, experts = make_router(name).bfloat16(), make_experts().bfloat16()
    routing = router(torch.randn(T, D).bfloat16(), experts, RoutingContext(MASK, competing))
    assert routing.weights_TK.dtype == torch.bfloat16
    assert_close(routing.weights_TK.float().sum(-1), torch.ones(T), atol=0.01, rtol=0)
    for value in routing.losses.values():
        assert value.dtype == torch.float32
        assert value.isfinite()


def test_top_k_weights_are_the_softmax_over_the_chosen_logits():
    router, x_TD = make_router("topk"), 20 * torch.randn(T, D)
    routing = router(x_TD, make_experts(), RoutingContext())
    for x_D, ids_K, weights_K in zip(x_TD, routing.ids_TK, routing.weights_TK, strict=True):
        logits_E = router.gate.weight @ x_D
        best = sorted(range(E), key=lambda expert: -logits_E[expert])[:K]
        assert ids_K.tolist() == best
        assert_close(weights_K, logits_E[best].softmax(dim=-1))
