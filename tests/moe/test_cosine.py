"""Both cosine routers against a loop.  T tokens, E experts, K chosen per token, D, R widths."""

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, RoutingContext
from llava_compete.moe.routers import RouterSpec

T, E, K, D = 11, 5, 2, 24
EXPERTS = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
NAMES = ["cosine", "perturbed_cosine"]


def make_router(name, *, seed=0, width=D, num_experts=E):
    return ROUTERS[name](
        RouterSpec(width=width, out_width=width, num_experts=num_experts, top_k=K, seed=seed)
    )


def divided(vector, theta):
    values = vector.tolist()
    length = sum(value**2 for value in values) ** 0.5
    return [value / (length + theta) for value in values]


@pytest.mark.parametrize(("name", "theta"), [("cosine", 0.0), ("perturbed_cosine", 0.1)])
def test_logits_ids_and_weights_equal_the_loop(name, theta):
    router, x_TD = make_router(name), torch.randn(T, D)
    logits_TE = router.logits(x_TD)
    routing = router(x_TD, EXPERTS, RoutingContext())
    for token, x_D in enumerate(x_TD):
        reduced = divided(router.reduction.weight @ x_D, theta)
        logits = []
        for embedding_R in router.embeddings:
            embedding = [1.5 * value for value in divided(embedding_R, theta)]
            logits.append(sum(a * b for a, b in zip(reduced, embedding, strict=True)) / 0.3)
        assert_close(logits_TE[token], torch.tensor(logits))
        best = sorted(range(E), key=lambda expert: -logits[expert])[:K]
        assert routing.ids_TK[token].tolist() == best
        chosen = torch.tensor([logits[expert] for expert in best])
        assert_close(routing.weights_TK[token], chosen.softmax(dim=-1))


def test_the_length_of_a_token_or_of_an_embedding_changes_nothing():
    router, x_TD = make_router("cosine"), torch.randn(T, D)
    wanted = router.logits(x_TD)
    assert_close(router.logits(7 * x_TD), wanted)
    with torch.no_grad():
        router.embeddings[1].mul_(5)
    assert_close(router.logits(x_TD), wanted)
    assert wanted.abs().max() <= 5


def test_in_the_perturbed_cosine_the_lengths_count_a_little():
    router, x_TD = make_router("perturbed_cosine"), torch.randn(T, D)
    logits_TE = router.logits(x_TD)
    longer_TE = router.logits(7 * x_TD)
    length_T = (x_TD @ router.reduction.weight.T).norm(dim=-1)
    factor_T = 7 * (length_T + 0.1) / (7 * length_T + 0.1)
    assert_close(longer_TE, factor_T[:, None] * logits_TE)
    assert ((factor_T > 1.001) & (factor_T < 1.5)).all()
    with torch.no_grad():
        router.embeddings[1].mul_(5)
    changed_TE = router.logits(x_TD) != logits_TE
    assert changed_TE[:, 1].all()
    assert not changed_TE[:, [0, 2, 3, 4]].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_changes_no_parameter(name):
    router, x_TD = make_router(name), torch.randn(T, D)
    before = {key: (value.clone(), value._version) for key, value in router.named_parameters()}
    first = router(x_TD, EXPERTS, RoutingContext())
    second = router(x_TD, EXPERTS, RoutingContext())
    for key, value in router.named_parameters():
        assert torch.equal(value, before[key][0])
        assert value._version == before[key][1]
    assert torch.equal(first.weights_TK, second.weights_TK)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_token_routes_evenly_with_a_finite_gradient(name):
    router = make_router(name)
    x_TD = torch.zeros(1, D, requires_grad=True)
    routing = router(x_TD, EXPERTS, RoutingContext())
    assert_close(routing.weights_TK, torch.full((1, K), 1 / K))
    (routing.weights_TK[0, 0] + sum(routing.losses.values())).backward()
    for tensor in (x_TD, *router.parameters()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_begin_orthogonal_in_sixteen_dimensions_or_fewer(name):
    router = make_router(name)
    assert router.embeddings.shape == (E, 16)
    assert_close(router.embeddings @ router.embeddings.T, 0.32**2 * torch.eye(E))
    assert router.reduction.weight.abs().max() <= D**-0.5
    assert make_router(name, width=6).embeddings.shape == (E, 6)
    assert make_router(name, num_experts=20).embeddings.shape == (20, 16)


@pytest.mark.parametrize("name", NAMES)
def test_initial_values_are_made_in_float32_whatever_the_default_dtype(name):
    wanted = make_router(name)
    torch.set_default_dtype(torch.bfloat16)
    try:
        router = make_router(name)
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in router.named_parameters():
        assert torch.equal(value, wanted.get_parameter(key).bfloat16())


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_float32_under_autocast(name):
    router, x_TD = make_router(name), torch.randn(T, D)
    with torch.autocast("cpu", torch.bfloat16):
        got_TE = router.logits(x_TD)
        reduced_TR = router.reduction(x_TD).float()
    unit_TR, unit_ER = router.unit(reduced_TR), router.unit(router.embeddings)
    assert got_TE.dtype == torch.float32
    assert_close(got_TE, 5 * unit_TR @ unit_ER.T)
