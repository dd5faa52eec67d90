"""What every router must do; a new entry in ROUTERS is tested by being there.

T tokens, E experts, K chosen per token, D width.
"""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from tests.moe.reference import run_expert

T, E, K, D, VOCABULARY = 11, 4, 2, 8, 6
MASK = torch.arange(T) < 8
IDS = torch.tensor([3, -1, 0, 5, -1, 1, 1, 2, 4, -1, 3])  # -1: an image token
PREVIOUS = torch.tensor([0, 1, 1, 3, 2, 0, 2, 1, 3, 0, 2])
every_router = pytest.mark.parametrize("name", ROUTERS)
every_step = pytest.mark.parametrize("competing", [False, True], ids=["router", "competition"])


def make_router(name, seed=0, top_k=K, previous=None):
    spec = RouterSpec(
        width=D,
        out_width=D,
        num_experts=E,
        top_k=top_k,
        seed=seed,
        vocab_size=VOCABULARY if ROUTERS[name].needs_token_ids else None,
        previous=previous,
    )
    if ROUTERS[name].needs_previous and previous is None:
        spec = replace(spec, previous=ROUTERS[name](replace(spec, seed=seed + 100)))
    return ROUTERS[name](spec)


def make_experts():
    return Experts(E, D, 12, D, activation="silu", gated=True, bias=False)


def make_context(mask_T=None, competing=False, tokens=slice(None)):
    """All that a router may ask for, of those tokens."""
    return RoutingContext(
        mask_T=None if mask_T is None else mask_T[tokens],
        competing=competing,
        token_ids_T=IDS[tokens],
        previous_T=PREVIOUS[tokens],
    )


def fits(name, top_k):
    try:
        ROUTERS[name].check(E, top_k, ROUTERS[name].Options())
    except ValueError:
        return False
    return True


@every_router
@every_step
@pytest.mark.parametrize("top_k", [1, K, E])
def test_shapes_dtypes_and_names_are_those_of_the_contract(name, competing, top_k):
    if not fits(name, top_k):
        with pytest.raises(ValueError, match=f"top_k={top_k}"):
            MoEConfig(router=name, num_experts=E, top_k=top_k)
        return
    routing = make_router(name, top_k=top_k)(
        torch.randn(T, D), make_experts(), make_context(None, competing)
    )
    assert routing.ids_TK.shape == routing.weights_TK.shape
    assert routing.ids_TK.shape in ((T, top_k), (T, E))
    assert routing.ids_TK.dtype == torch.int64
    assert routing.ids_TK.min() >= 0
    assert routing.ids_TK.max() <= E
    assert set(routing.losses) <= set(ROUTERS[name].loss_weights)
    for value in routing.losses.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
    for value in routing.metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
    assert routing.scores_TE.shape == (T, E)
    assert routing.scores_TE.dtype == torch.float32
    assert not routing.scores_TE.requires_grad
    if routing.outputs_TKO is not None:
        assert routing.outputs_TKO.shape == (T, top_k, D)
    if routing.most_pairs is not None:
        assert (routing.ids_TK != E).sum() <= routing.most_pairs < T * E


@every_router
@every_step
def test_weights_are_finite_and_sum_to_one_where_the_router_says_so(name, competing):
    routing = make_router(name)(
        10 * torch.randn(T, D), make_experts(), make_context(None, competing)
    )
    assert routing.weights_TK.isfinite().all()
    if ROUTERS[name].sums_to_one:
        assert (routing.weights_TK >= 0).all()
        assert_close(routing.weights_TK.sum(dim=-1), torch.ones(T))
    none_TK = routing.ids_TK == E
    assert torch.equal(routing.weights_TK[none_TK], torch.zeros(int(none_TK.sum())))


@every_router
@every_step
def test_an_expert_is_chosen_once_at_most_by_a_token(name, competing):
    routing = make_router(name)(torch.randn(T, D), make_experts(), make_context(None, competing))
    for ids_K in routing.ids_TK.tolist():
        chosen = [expert for expert in ids_K if expert != E]
        assert len(chosen) == len(set(chosen))


@every_router
@every_step
def test_outputs_handed_back_are_those_of_the_chosen_experts(name, competing):
    experts, x_TD = make_experts(), torch.randn(T, D)
    routing = make_router(name)(x_TD, experts, make_context(None, competing))
    if routing.outputs_TKO is not None:
        for token, ids_K in enumerate(routing.ids_TK.tolist()):
            for k, expert in enumerate(ids_K):
                wanted_O = run_expert(experts, expert, x_TD[token : token + 1])[0]
                assert_close(routing.outputs_TKO[token, k], wanted_O)


@every_router
@every_step
def test_the_order_of_tokens_changes_nothing(name, competing):
    router, experts, x_TD = make_router(name), make_experts(), torch.randn(T, D)
    order = torch.randperm(T)
    plain = router(x_TD, experts, make_context(MASK, competing))
    mixed = router(x_TD[order], experts, make_context(MASK, competing, order))
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
    padded = router(x_TD, experts, make_context(MASK, competing))
    alone = router(kept, experts, make_context(None, competing, MASK))
    assert torch.equal(padded.ids_TK[MASK], alone.ids_TK)
    assert_close(padded.weights_TK[MASK], alone.weights_TK)
    for values in ("losses", "metrics"):
        assert_close(getattr(padded, values), getattr(alone, values))


@every_router
@every_step
def test_a_step_with_no_kept_token_gives_zero_losses_and_zero_gate_gradients(name, competing):
    router, experts = make_router(name), make_experts()
    routing = router(
        torch.randn(T, D), experts, make_context(torch.zeros(T, dtype=torch.bool), competing)
    )
    if not routing.losses:
        return
    total = torch.stack(list(routing.losses.values())).sum()
    assert total == 0
    total.backward()
    for parameter in router.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@every_router
@every_step
def test_gradient_reaches_every_parameter_of_the_router(name, competing):
    router, experts, x_TD = make_router(name), make_experts(), torch.randn(T, D)
    with torch.no_grad():  # off the start, where a last map may be zero
        for parameter in router.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    routing = router(x_TD, experts, make_context(None, competing))
    if routing.outputs_TKO is None:
        y_TD = experts(x_TD, routing.ids_TK, routing.weights_TK)
    else:
        y_TD = torch.einsum("tk,tko->to", routing.weights_TK, routing.outputs_TKO)
    if routing.residual_TO is not None:
        y_TD = y_TD + routing.residual_TO
    (y_TD.square().sum() + sum(routing.losses.values())).backward()
    for parameter in router.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@every_router
def test_initial_weights_come_from_the_seed_alone_and_differ_between_seeds(name):
    first = make_router(name, seed=3)
    torch.manual_seed(99)
    again, other = make_router(name, seed=3), make_router(name, seed=4)
    for key, value in first.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, again.get_parameter(key))
        assert not torch.equal(value, other.get_parameter(key))


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
    routing = router(torch.randn(T, D).bfloat16(), experts, make_context(MASK, competing))
    assert routing.weights_TK.dtype == torch.bfloat16
    if ROUTERS[name].sums_to_one:
        assert_close(routing.weights_TK.float().sum(-1), torch.ones(T), atol=0.01, rtol=0)
    for value in routing.losses.values():
        assert value.dtype == torch.float32
        assert value.isfinite()


def test_top_k_weights_are_the_softmax_over_the_chosen_logits():
    router, x_TD = make_router("topk"), 20 * torch.randn(T, D)
    routing = router(x_TD, make_experts(), make_context())
    for x_D, ids_K, weights_K in zip(x_TD, routing.ids_TK, routing.weights_TK, strict=True):
        logits_E = router.gate.weight @ x_D
        best = sorted(range(E), key=lambda expert: -logits_E[expert])[:K]
        assert ids_K.tolist() == best
        assert_close(weights_K, logits_E[best].softmax(dim=-1))
