"""MaskMoE against a loop.  T tokens, E experts, K chosen per token, D width."""

from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from llava_compete import load, save, upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.routers.maskmoe import BITS, dealt, scramble
from tests import tiny

T, D, VOCABULARY = 60, 8, 1000
MASK = torch.arange(T) % 7 != 4
EXPERTS = Experts(4, D, 12, D, activation="silu", gated=True, bias=False)
CASES = [(5, 2, {}), (4, 1, {}), (6, 2, {"visible": 3, "frequent_share": 0.5}), (3, 3, {})]
cases = pytest.mark.parametrize(("num_experts", "top_k", "options"), CASES)


def make_router(num_experts=5, top_k=2, seed=0, scale=30.0, **options):
    spec = RouterSpec(
        width=D,
        out_width=D,
        num_experts=num_experts,
        top_k=top_k,
        seed=seed,
        options=options,
        vocab_size=VOCABULARY,
    )
    router = ROUTERS["maskmoe"](spec)
    with torch.no_grad():
        router.gate.weight.mul_(scale)
    return router


def make_ids():
    """Image tokens, frequent and infrequent ids."""
    generator = torch.Generator().manual_seed(3)
    ids_T = torch.randint(0, VOCABULARY, (T,), generator=generator)
    ids_T[::5], ids_T[1::5] = -1, ids_T[1::5] % 50
    return ids_T


def loop(weight_ED, x_TD, ids_T, seen, top_k):
    """Weights (T, E), balance and z-loss, number by number; ``seen`` has each id's experts."""
    num_experts = len(weight_ED)
    weights_TE = torch.zeros(T, num_experts, dtype=torch.float64)
    count, mean, z_losses = [0] * num_experts, [0.0] * num_experts, []
    for token, token_id in enumerate(ids_T.tolist()):
        powers = {e: (weight_ED[e] @ x_TD[token]).exp() for e in seen[token_id]}
        best = sorted(powers, key=lambda e: -powers[e].item())[:top_k]
        for e in best:
            weights_TE[token, e] = powers[e] / sum(powers[other] for other in best)
        if MASK[token]:
            z_losses.append(sum(powers.values()).log() ** 2)
            for e, power in powers.items():
                count[e] += e in best
                mean[e] = mean[e] + power / sum(powers.values())
    kept = len(z_losses)
    balance = sum(num_experts * count[e] / sum(count) * mean[e] / kept for e in range(num_experts))
    return weights_TE, {"balance": balance, "router_z": sum(z_losses) / kept}


@cases
def test_choice_weights_losses_and_gradients_equal_the_loop(num_experts, top_k, options, precision):
    router, ids_T = make_router(num_experts, top_k, **options).to(precision), make_ids()
    seen = {
        token_id: router.visible(torch.tensor([token_id]))[0].nonzero()[:, 0].tolist()
        for token_id in ids_T.tolist()
    }
    x_TD, random_TE = (torch.randn(T, n, dtype=precision) for n in (D, num_experts))
    routing = router(x_TD, EXPERTS, RoutingContext(mask_T=MASK, token_ids_T=ids_T))
    got_TE = torch.zeros(T, num_experts, dtype=precision)
    got_TE = got_TE.scatter(1, routing.ids_TK, routing.weights_TK)
    ((got_TE * random_TE).sum() + sum(routing.losses.values())).backward()

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    wanted_TE, wanted = loop(weight_ED, x_TD.double(), ids_T, seen, top_k)
    ((wanted_TE * random_TE).sum() + sum(wanted.values())).backward()
    assert_close(got_TE, wanted_TE.to(precision))
    for name, value in wanted.items():
        assert_close(routing.losses[name], value.to(precision))
    assert_close(router.gate.weight.grad, weight_ED.grad.to(precision))


def test_infrequent_ids_see_k_experts_frequent_ones_more_and_image_tokens_all():
    ids_T = torch.arange(-1, VOCABULARY)
    count_T = make_router(6, 2, frequent_share=0.3, visible=4).visible(ids_T).sum(dim=-1)
    assert count_T[0] == 6
    assert (count_T[1:301] == 4).all()
    assert (count_T[301:] == 2).all()
    assert (make_router(6, 2).visible(ids_T)[:101].sum(dim=-1) == 6).all()
    assert (make_router(6, 1).visible(ids_T)[101:].sum(dim=-1) == 1).all(), "the paper's"


def test_an_infrequent_id_has_the_same_experts_in_every_state():
    router = make_router()
    ids_T = torch.full((T,), 777)
    routing = router(10 * torch.randn(T, D), EXPERTS, RoutingContext(token_ids_T=ids_T))
    assert len({frozenset(ids_K) for ids_K in routing.ids_TK.tolist()}) == 1
    assert len({ids_K[0] for ids_K in routing.ids_TK.tolist()}) == 2, "the gate ranks them"


def test_another_layer_deals_other_experts_and_the_same_seed_the_same():
    ids_T = torch.arange(VOCABULARY)
    tables = [make_router(seed=seed).visible(ids_T)[100:] for seed in (0, 0, 1, 2)]
    assert torch.equal(tables[0], tables[1])
    for one, other in combinations(tables[1:], 2):
        same = (one == other).all(dim=-1).float().mean()
        assert same == pytest.approx(1 / 10, abs=0.05)  # of 10 pairs of 5 experts


@pytest.mark.parametrize("seed", [0, 42, 2**40 + 3])
def test_all_orders_are_dealt_equally_often(seed):
    places_TE = dealt(torch.tensor(seed), torch.arange(60_000), 4)
    orders, count = places_TE.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    # 2500 each, standard deviation 49.
    assert (count - 2500).abs().max() < 5 * 49


def test_a_hash_is_of_32_bits_and_overflows_nowhere():
    numbers = torch.cat([torch.arange(1000), BITS - torch.arange(1000)])
    hashes = scramble(numbers)
    assert hashes.min() >= 0
    assert hashes.max() <= BITS
    assert len(hashes.unique()) == 2000
    for number, value in zip(numbers[::97].tolist(), hashes[::97].tolist(), strict=True):
        for _ in range(2):
            number = ((number >> 16 ^ number) * 0x45D9F3B) & BITS
        assert number >> 16 ^ number == value


def test_an_expert_that_is_not_seen_is_not_chosen_however_small_the_others_are():
    router = make_router(5, 2, frequent_share=0.0)
    ids_T = torch.arange(T)
    seen_TE = router.visible(ids_T)
    x_TD = torch.zeros(T, D)
    x_TD[:, 0] = 1
    with torch.no_grad():  # probabilities of all but one are 0 in float32
        router.gate.weight[:, 0] = torch.tensor([0.0, 200, 400, 600, 800])
    routing = router(x_TD, EXPERTS, RoutingContext(token_ids_T=ids_T))
    assert seen_TE.gather(1, routing.ids_TK).all()
    assert routing.weights_TK.isfinite().all()


def test_a_cast_moves_no_expert():
    router, ids_T = make_router(seed=12345), torch.arange(VOCABULARY)
    assert torch.equal(router.visible(ids_T), make_router(seed=12345).bfloat16().visible(ids_T))


def test_a_saved_model_keeps_its_visible_experts_in_any_order_of_its_parts(dense, tmp_path):
    model, processor = dense()
    configs = tiny.moe_configs(["language_model"], router="maskmoe")
    # config.json is written with its keys in order: the language model comes first again.
    configs = {**tiny.moe_configs(["projector"], router="topk"), **configs}
    upcycle_model(model, configs, perturbation=0.5)
    save(model, processor, tmp_path / "saved")
    again, _ = load(tmp_path / "saved")
    assert list(again.config.moe) != list(model.config.moe)
    ids_T = torch.arange(200)
    for before, after in zip(
        model.moe_layers()["language_model"], again.moe_layers()["language_model"], strict=True
    ):
        assert after.router.spec.seed == before.router.spec.seed
        assert torch.equal(after.router.visible(ids_T), before.router.visible(ids_T))


def test_an_upcycled_model_is_the_dense_one(dense):
    model, _ = dense()
    configs = tiny.moe_configs(["language_model"], router="maskmoe")
    report = upcycle_model(model, configs)  # refuses a change
    assert report.largest_difference < 1e-5 * report.largest_logit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequent_share": 1.5}, "frequent_share=1.5 must be between 0 and 1"),
        ({"visible": 0}, "visible=0 must be at least 1"),
        ({"visible": 1}, "visible=1 must be between top_k=2 and num_experts=4"),
        ({"visible": 5}, "visible=5 must be between top_k=2 and num_experts=4"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router="maskmoe", num_experts=4, top_k=2, router_options=options)
