"""StableMoE against loops.  T tokens, E experts, K chosen per token, D width, V vocabulary."""

import copy

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.routers.stablemoe import light_distillation, score_balance

T, D, VOCABULARY = 40, 8, 30
MASK = torch.arange(T) % 5 != 3
IDS = torch.arange(T) * 7 % VOCABULARY
IDS[::3] = -1
EXPERTS = Experts(4, D, 12, D, activation="silu", gated=True, bias=False)
shapes = pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (5, 2), (3, 3)])


def make_router(num_experts=4, top_k=2, seed=0, scale=30.0, **options):
    spec = RouterSpec(
        width=D,
        out_width=D,
        num_experts=num_experts,
        top_k=top_k,
        seed=seed,
        options=options,
        vocab_size=VOCABULARY,
    )
    router = ROUTERS["stablemoe"](spec)
    with torch.no_grad():
        router.gate.weight.mul_(scale)  # at the start all scores are alike
        router.light_centroids.weight.mul_(scale / 3)
        router.light_image_gate.weight.mul_(scale)
    return router


def route(router, x_TD, **context):
    return router(x_TD, EXPERTS, RoutingContext(mask_T=MASK, token_ids_T=IDS, **context))


def freeze(router, step=1, max_steps=10):
    """A training step that begins stage two."""
    router.begin_step(step, max_steps)
    route(router.train(), torch.randn(T, D, dtype=router.gate.weight.dtype))
    router.end_step()
    return router


def best(values, top_k):
    return sorted(range(len(values)), key=lambda e: -values[e].item())[:top_k]


def light_scores(weights, x_D, token_id):
    """What the light router says of a token, an expert at a time."""
    experts = range(len(weights["gate"]))
    if token_id < 0:
        return [weights["light_image_gate"][e] @ x_D for e in experts]
    return [weights["light_centroids"][e] @ weights["light_embedding"][token_id] for e in experts]


def loop(weights, x_TD, top_k):
    """Ids, weights (T, K), both losses and the metric of stage one, number by number."""
    num_experts = len(weights["gate"])
    ids, rows, light_losses, hits = [], [], [], []
    for token in range(T):
        z = [weights["gate"][e] @ x_TD[token] for e in range(num_experts)]
        chosen = best(z, top_k)
        ids.append(chosen)
        rows.append(torch.stack([1 / (1 + (-z[e]).exp()) for e in chosen]))
        light = light_scores(weights, x_TD[token].detach(), IDS[token])
        total = sum(value.exp() for value in light)
        entropy = -sum((light[e].exp() / total).log() / top_k for e in chosen)
        light_losses.append(entropy)
        hits.append(sum(e in chosen for e in best(light, top_k)) / top_k)
    kept = [token for token in range(T) if MASK[token]]
    sent = {e: [] for e in range(num_experts)}
    for token in kept:
        for k, e in enumerate(ids[token]):
            sent[e].append(rows[token][k])
    mean = len(kept) * top_k / num_experts
    balance = sum((len(found) - mean) / mean * sum(found) for found in sent.values()) / len(kept)
    losses = {"balance": balance, "light": sum(light_losses[token] for token in kept) / len(kept)}
    return ids, torch.stack(rows), losses, sum(hits[token] for token in kept) / len(kept)


def doubles(router):
    """The router's weights by module, as float64 leaves."""
    return {
        name.removesuffix(".weight"): parameter.detach().double().requires_grad_()
        for name, parameter in router.named_parameters()
    }


@shapes
def test_stage_one_and_its_gradients_equal_the_loop(num_experts, top_k, precision):
    router = make_router(num_experts, top_k).to(precision)
    router.state_image_gate = router.state_image_gate.to(precision)
    x_TD, random_TK = (torch.randn(T, n, dtype=precision) for n in (D, top_k))
    x_TD.requires_grad_()
    routing = route(router, x_TD)
    ((routing.weights_TK * random_TK).sum() + sum(routing.losses.values())).backward()

    weights = doubles(router)
    wide_TD = x_TD.detach().double().requires_grad_()
    ids, weights_TK, losses, light_agreement = loop(weights, wide_TD, top_k)
    ((weights_TK * random_TK).sum() + sum(losses.values())).backward()
    assert routing.ids_TK.tolist() == ids
    assert_close(routing.weights_TK, weights_TK.to(precision))
    for name, value in losses.items():
        assert_close(routing.losses[name], value.to(precision))
    assert routing.metrics["light_agreement"].item() == pytest.approx(light_agreement)
    for name, weight in weights.items():
        assert_close(router.get_parameter(f"{name}.weight").grad, weight.grad.to(precision))
    assert_close(x_TD.grad, wide_TD.grad.to(precision))
    assert_close(routing.scores_TE, router.gate(x_TD).detach())


@shapes
def test_stage_two_takes_the_light_routers_experts_at_the_gates_weights(
    num_experts, top_k, precision
):
    router = make_router(num_experts, top_k).to(precision)
    router.state_image_gate = router.state_image_gate.to(precision)
    router = freeze(router)
    x_TD = torch.randn(T, D, dtype=precision)
    routing, weights = route(router, x_TD), doubles(router)
    for token in range(T):
        wide_D = x_TD[token].double()
        chosen = best(light_scores(weights, wide_D, IDS[token]), top_k)
        assert routing.ids_TK[token].tolist() == chosen
        z_K = torch.stack([weights["gate"][e] @ wide_D for e in chosen])
        assert_close(routing.weights_TK[token], z_K.sigmoid().to(precision))
        ranked = routing.scores_TE[token].argsort(descending=True)[:top_k]
        assert ranked.tolist() == chosen


def test_stage_two_leaves_every_parameter_a_gradient_and_the_light_router_one_of_zero():
    router = freeze(make_router())
    routing = route(router, torch.randn(T, D))
    (routing.weights_TK.square().sum() + sum(routing.losses.values())).backward()
    assert [value.item() for value in routing.losses.values()] == [0, 0]
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == (name == "gate.weight"), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_optimizer_moves_a_frozen_assignment(optimizer):
    router = make_router(stage_one=0.5).train()
    known = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.99, weight_decay=0.1),
    }
    stepper = known[optimizer](router.parameters())
    x_TD, ids = torch.randn(T, D), []
    for step in range(20):
        router.begin_step(step, 20)
        routing = route(router, x_TD)
        ids.append(routing.ids_TK)
        (routing.weights_TK.square().mean() + sum(routing.losses.values())).backward()
        stepper.step()
        stepper.zero_grad()
        router.end_step()
        if step == 10:
            before = copy.deepcopy(router)
    assert router.state_stage == 2
    assert not torch.equal(router.light_embedding.weight, before.light_embedding.weight)
    assert not torch.equal(router.light_image_gate.weight, before.light_image_gate.weight)
    for later in ids[11:]:
        assert torch.equal(later, ids[10])
    assert not torch.equal(ids[0], ids[9]), "stage one is to learn"


def test_the_stages_change_at_their_share_of_the_steps_in_the_first_micro_batch():
    router, stages = make_router(stage_one=0.3).train(), []
    for step in range(10):
        router.begin_step(step, 10)
        for _ in range(2):
            route(router, torch.randn(T, D))
            stages.append(int(router.state_stage))
        router.end_step()
    assert stages == [1] * 6 + [2] * 14


def test_a_run_shorter_than_stage_one_has_a_step_of_it():
    router = make_router(stage_one=0.1).train()
    router.begin_step(0, 3)
    route(router, torch.randn(T, D))
    assert router.state_stage == 1


def test_with_stage_one_to_the_end_nothing_is_frozen():
    router = make_router(stage_one=1.0)
    freeze(router, step=9, max_steps=10)
    assert router.state_stage == 1


@pytest.mark.parametrize("way", ["evaluation", "recomputation", "frozen parameters"])
def test_what_is_no_training_of_the_router_freezes_nothing(way):
    router = make_router().requires_grad_(way != "frozen parameters")
    router.begin_step(5, 10)
    router.train(way != "evaluation")
    route(router, torch.randn(T, D), recording=way != "recomputation")
    assert router.state_stage == 1


def test_the_forward_that_freezes_routes_by_what_it_froze():
    """What activation checkpointing runs again after it must route alike."""
    router, x_TD = make_router().train(), torch.randn(T, D)
    router.begin_step(1, 10)
    first = route(router, x_TD)
    again = route(router, x_TD, recording=False)
    assert torch.equal(again.ids_TK, first.ids_TK)
    assert torch.equal(again.ids_TK, route(router.eval(), x_TD).ids_TK)


def test_a_resumed_run_does_not_freeze_again():
    router = freeze(make_router())
    resumed = make_router(seed=5)
    resumed.load_state_dict(router.state_dict())
    with torch.no_grad():
        resumed.light_embedding.weight.add_(torch.randn_like(router.light_embedding.weight))
        resumed.light_image_gate.weight.neg_()
    for step in (0, 7):  # a further training, and the same one
        freeze(resumed, step=step)
        assert resumed.state_stage == 2
        assert torch.equal(resumed.state_assignment, router.state_assignment)
        assert torch.equal(resumed.state_image_gate, router.state_image_gate)
    x_TD = torch.randn(T, D)
    assert torch.equal(route(resumed, x_TD).ids_TK, route(router, x_TD).ids_TK)


def test_fresh_routers_begin_in_stage_one():
    router = freeze(make_router())
    router.reset_parameters()
    assert router.state_stage == 1
    assert not router.state_assignment.any()
    assert freeze(router).state_stage == 2


def test_a_cast_moves_no_frozen_choice():
    router = freeze(make_router())
    x_TD = torch.randn(T, D).bfloat16()
    wanted_TK = route(router, x_TD.float()).ids_TK
    assert torch.equal(route(router.bfloat16(), x_TD).ids_TK, wanted_TK)
    assert router.state_image_gate.dtype == torch.float32


def test_a_part_of_the_gradient_never_reaches_the_hidden_states():
    router, x_TD = make_router(), torch.randn(T, D, requires_grad=True)
    route(router, x_TD).losses["light"].backward()
    assert x_TD.grad is None
    assert router.gate.weight.grad is None
    assert router.light_embedding.weight.grad.any()
    assert router.light_image_gate.weight.grad.any()


def test_balance_is_zero_under_even_load_and_pushes_against_an_uneven_one():
    scores_TE = torch.rand(8, 4, requires_grad=True)
    even_TK = (torch.arange(8) % 4)[:, None]
    assert_close(score_balance(scores_TE, even_TK), torch.tensor(0.0))
    uneven_TK = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])[:, None]
    score_balance(scores_TE, uneven_TK).backward()
    sent_T = scores_TE.grad.gather(1, uneven_TK)[:, 0]
    assert (sent_T[:5] > 0).all()
    assert (sent_T[5:] < 0).all()


def test_the_light_router_learns_the_choice():
    router = make_router(stage_one=1.0)
    stepper = torch.optim.Adam(router.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    of_id_VD = torch.randn(VOCABULARY + 1, D, generator=generator)  # -1: the last
    for _ in range(100):
        routing = route(router, of_id_VD[IDS])
        routing.losses["light"].backward()
        stepper.step()
        stepper.zero_grad()
    assert routing.metrics["light_agreement"] > 0.95
    assert light_distillation(torch.zeros(T, 4), routing.ids_TK) == pytest.approx(1.3863, abs=1e-3)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_an_impossible_stage_one_is_refused(share):
    with pytest.raises(ValueError, match=f"stage_one={share} must be above 0 and at most 1"):
        MoEConfig(router="stablemoe", router_options={"stage_one": share})


def test_more_experts_than_a_byte_can_name_are_refused():
    with pytest.raises(ValueError, match="num_experts=257 must be at most 256"):
        MoEConfig(router="stablemoe", num_experts=257)
