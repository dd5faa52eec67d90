"""Routing figures against loops over tokens.  T tokens, E experts, K columns, O output width."""

import math
import random

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, MoELayer, Routing
from llava_compete.moe.analysis import (
    Tally,
    allocation_entropy,
    chosen_experts,
    drop_top1,
    margins,
    replacement,
    token_figures,
    winners,
)
from llava_compete.moe.elementwise import affinity
from llava_compete.moe.routers.compete import agreement as compete_agreement

T, E, O = 12, 5, 6  # noqa: E741
KEPT = torch.tensor([True] * 7 + [False] * 3 + [True] * 2)


def draw_routing(ragged, dtype=torch.float32):
    """Choices by score: two of each token, or any number (0 to E) of it."""
    generator = random.Random(0)
    scores_TE = torch.randn(T, E, dtype=dtype)
    columns = E if ragged else 2
    ids_TK = torch.full((T, columns), E)
    weights_TK = torch.zeros(T, columns, dtype=dtype)
    for t in range(T):
        count = generator.choice([0, 1, 3, E]) if ragged else 2
        order = scores_TE[t].argsort(descending=True)[:count].tolist()
        places = generator.sample(range(columns), count)  # no order among the columns
        for place, expert in zip(places, order, strict=True):
            ids_TK[t, place] = expert
            weights_TK[t, place] = generator.uniform(0.1, 1)
    return Routing(ids_TK, weights_TK, {}, {}, scores_TE)


@pytest.fixture(params=[False, True], ids=["two", "ragged"])
def routing(request, precision):
    return draw_routing(request.param, precision)


@pytest.fixture
def outputs_TEO(precision):
    return torch.randn(T, E, O, dtype=precision)


@pytest.fixture
def y_TO(precision):
    return torch.randn(T, O, dtype=precision)


def experts_of(routing, t):
    return [e for e in routing.ids_TK[t].tolist() if e < E]


def mean(values):
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def loop_margin(routing, t):
    chosen = experts_of(routing, t)
    left = [e for e in range(E) if e not in chosen]
    if not chosen or not left:
        return math.nan
    scores = routing.scores_TE[t].tolist()
    return min(scores[e] for e in chosen) - max(scores[e] for e in left)


def loop_winners(outputs_TEO, count, t):
    strength = [float(F.softplus(outputs_TEO[t, e]).mean()) for e in range(E)]
    return sorted(range(E), key=lambda e: -strength[e])[:count]


def loop_agreement(routing, outputs_TEO, t):
    chosen = experts_of(routing, t)
    if not chosen:
        return math.nan
    won = loop_winners(outputs_TEO, len(chosen), t)
    return len(set(chosen) & set(won)) / len(chosen)


def loop_drop(routing, outputs_TEO, y_TO, t):
    chosen = experts_of(routing, t)
    left = [e for e in range(E) if e not in chosen]
    if not chosen or not left:
        return math.nan
    first = max(chosen, key=lambda e: routing.scores_TE[t, e].item())
    newcomer = max(left, key=lambda e: routing.scores_TE[t, e].item())
    weight = routing.weights_TK[t, routing.ids_TK[t].tolist().index(first)]
    change_O = weight * (outputs_TEO[t, newcomer] - outputs_TEO[t, first])
    return float(change_O.norm() / y_TO[t].norm())


def test_chosen_experts_are_those_the_ids_name(routing):
    chosen_TE = chosen_experts(routing.ids_TK, E)
    for t in range(T):
        assert chosen_TE[t].nonzero().flatten().tolist() == sorted(experts_of(routing, t))


def test_margins_equal_the_loop(routing):
    margin_T, relative_T = margins(routing.scores_TE, chosen_experts(routing.ids_TK, E))
    wanted_T = margin_T.new_tensor([loop_margin(routing, t) for t in range(T)])
    range_T = routing.scores_TE.amax(dim=1) - routing.scores_TE.amin(dim=1)
    assert_close(margin_T, wanted_T, equal_nan=True)
    assert_close(relative_T, wanted_T / range_T, equal_nan=True)


def test_an_expert_that_is_forbidden_is_no_rival():
    chosen_TE = torch.tensor([[True, False, False], [True, False, False]])
    scores_TE = torch.tensor([[3.0, 1.0, -math.inf], [3.0, -math.inf, -math.inf]])
    margin_T, relative_T = margins(scores_TE, chosen_TE)
    assert_close(margin_T, torch.tensor([2.0, math.nan]), equal_nan=True)
    assert_close(relative_T, torch.tensor([1.0, math.nan]), equal_nan=True)


def test_a_choice_against_the_scores_has_a_negative_margin():
    margin_T, _ = margins(torch.tensor([[1.0, 4.0]]), torch.tensor([[True, False]]))
    assert_close(margin_T, torch.tensor([-3.0]))


def test_winners_are_as_many_as_the_token_has_experts(routing, outputs_TEO):
    won_TE = winners(outputs_TEO, chosen_experts(routing.ids_TK, E))
    for t in range(T):
        wanted = loop_winners(outputs_TEO, len(experts_of(routing, t)), t)
        assert sorted(wanted) == won_TE[t].nonzero().flatten().tolist()


def test_agreement_of_k_for_every_token_is_what_the_trainer_logs(outputs_TEO, y_TO):
    routing = draw_routing(ragged=False, dtype=y_TO.dtype)
    figures = token_figures(routing, outputs_TEO, y_TO)
    winner_ids_TK = affinity(outputs_TEO).topk(2, dim=-1).indices
    logged = compete_agreement(routing.ids_TK, winner_ids_TK, KEPT)
    assert figures.agreement_T[KEPT].mean().item() == pytest.approx(logged.item())


def test_dropping_the_first_expert_equals_the_loop(routing, outputs_TEO, y_TO):
    found_T = drop_top1(routing, outputs_TEO, y_TO)
    wanted_T = [loop_drop(routing, outputs_TEO, y_TO, t) for t in range(T)]
    assert_close(found_T, found_T.new_tensor(wanted_T), equal_nan=True)


def test_the_newcomer_is_the_best_of_those_left_and_takes_the_weight(routing):
    first_T, next_T, weight_T = replacement(routing)
    for t in range(T):
        chosen = experts_of(routing, t)
        if len(chosen) in (0, E):
            assert (first_T[t], next_T[t], weight_T[t]) == (E, E, 0)
            continue
        order = routing.scores_TE[t].argsort(descending=True).tolist()
        assert (first_T[t], next_T[t]) == (order[0], order[len(chosen)])
        place = routing.ids_TK[t].tolist().index(order[0])
        assert weight_T[t] == routing.weights_TK[t, place]


def test_an_expert_that_is_always_on_is_not_dropped_and_sets_no_margin():
    scores_TE = torch.tensor([[math.inf, 1.0, 3.0, 2.0]])
    routing = Routing(torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.4]]), {}, {}, scores_TE)
    first_T, next_T, weight_T = replacement(routing)
    assert (first_T.item(), next_T.item()) == (2, 3)
    assert_close(weight_T, torch.tensor([0.4]))
    margin_T, relative_T = margins(scores_TE, chosen_experts(routing.ids_TK, 4))
    assert_close((margin_T, relative_T), (torch.tensor([1.0]), torch.tensor([0.5])))


def tally_of(routing, outputs_TEO, y_TO, kept_T=KEPT):
    tally = Tally(E)
    tally.add(token_figures(routing, outputs_TEO, y_TO), kept_T)
    return tally


def test_the_figures_equal_the_loop_over_the_kept_tokens(routing, outputs_TEO, y_TO):
    found = tally_of(routing, outputs_TEO, y_TO).figures()
    kept = [t for t in range(T) if KEPT[t]]
    chosen = {t: experts_of(routing, t) for t in kept}
    pairs = [e for t in kept for e in chosen[t]]
    load = [pairs.count(e) / len(pairs) for e in range(E)]
    assert found["tokens"] == len(kept)
    assert found["load"] == pytest.approx(load)
    assert found["experts_per_token"] == pytest.approx(len(pairs) / len(kept))
    entropy = -sum(p * math.log(p) for p in load if p) / math.log(E)
    assert found["entropy"] == pytest.approx(entropy)
    assert found["margin"] == pytest.approx(mean([loop_margin(routing, t) for t in kept]))
    agreed = [loop_agreement(routing, outputs_TEO, t) for t in kept]
    assert found["agreement"] == pytest.approx(mean(agreed))
    assert found["chance"] == pytest.approx(mean([len(chosen[t]) / E or math.nan for t in kept]))
    dropped = [loop_drop(routing, outputs_TEO, y_TO, t) for t in kept]
    assert found["drop_top1"] == pytest.approx(mean(dropped))


def test_coactivation_is_the_share_of_the_row_experts_tokens(routing, outputs_TEO, y_TO):
    found = tally_of(routing, outputs_TEO, y_TO).figures()["coactivation"]
    chosen = [set(experts_of(routing, t)) for t in range(T) if KEPT[t]]
    for e in range(E):
        mine = [experts for experts in chosen if e in experts]
        for f in range(E):
            wanted = sum(f in experts for experts in mine) / len(mine)
            assert found[e][f] == pytest.approx(wanted)


def test_similarity_is_the_mean_cosine_of_two_experts_outputs(routing, outputs_TEO, y_TO):
    found = tally_of(routing, outputs_TEO, y_TO).figures()["similarity"]
    for e in range(E):
        for f in range(E):
            cosines = F.cosine_similarity(outputs_TEO[KEPT, e], outputs_TEO[KEPT, f], dim=-1)
            assert found[e][f] == pytest.approx(float(cosines.mean()), abs=1e-6)


def test_shuffled_agreement_is_that_of_every_token_with_every_tokens_winners(outputs_TEO, y_TO):
    routing = draw_routing(ragged=False, dtype=y_TO.dtype)
    found = tally_of(routing, outputs_TEO, y_TO).figures()["agreement_shuffled"]
    kept = [t for t in range(T) if KEPT[t]]
    hits = [
        len(set(experts_of(routing, t)) & set(loop_winners(outputs_TEO, 2, other))) / 2
        for t in kept
        for other in kept
    ]
    assert found == pytest.approx(sum(hits) / len(hits))


def test_sums_over_batches_are_the_sums_of_one(routing, outputs_TEO, y_TO):
    whole = tally_of(routing, outputs_TEO, y_TO, torch.ones(T, dtype=torch.bool)).figures()
    first = tally_of(routing, outputs_TEO, y_TO, KEPT)
    both = first + tally_of(routing, outputs_TEO, y_TO, ~KEPT)
    for name, value in both.figures().items():
        assert_close(torch.tensor(value), torch.tensor(whole[name]), equal_nan=True)


def test_a_tally_of_no_token_has_no_value_and_does_not_fail():
    found = Tally(E).figures()
    assert found["tokens"] == 0
    assert all(math.isnan(found[name]) for name in ("entropy", "margin", "agreement", "changed"))


def test_rubbish_in_tokens_that_do_not_count_changes_no_figure(routing, outputs_TEO, y_TO):
    wanted = tally_of(routing, outputs_TEO, y_TO).sums
    outputs_TEO[~KEPT], y_TO[~KEPT] = math.nan, math.inf
    routing.scores_TE[~KEPT] = math.nan
    for name, value in tally_of(routing, outputs_TEO, y_TO).sums.items():
        assert_close(value, wanted[name])


@pytest.mark.parametrize(
    ("load", "entropy"), [([0.25] * 4, 1.0), ([1.0, 0.0], 0.0), ([1.0], 1.0), ([0.5, 0.5, 0], 0.63)]
)
def test_entropy_is_one_for_an_even_load_and_zero_for_a_collapsed_one(load, entropy):
    assert allocation_entropy(torch.tensor(load)) == pytest.approx(entropy, abs=1e-3)


# The others need a model around them: tests/routing/test_watch.py.
ALONE = [name for name, cls in ROUTERS.items() if not (cls.needs_token_ids or cls.needs_previous)]


@pytest.mark.parametrize("router", ALONE)
def test_every_router_can_be_read(router):
    experts = Experts(4, O * 4, 8, O * 4, activation="gelu", gated=False, bias=True)
    layer = MoELayer(experts, MoEConfig(num_experts=4, top_k=2, router=router), index=0).eval()
    x = torch.randn(2, T, O * 4)
    with torch.no_grad():
        y_TO, outputs_TEO = layer(x).flatten(0, 1), experts.all_outputs(x.flatten(0, 1))
    tally = Tally(4)
    tally.add(token_figures(layer.routing, outputs_TEO, y_TO), torch.ones(2 * T, dtype=torch.bool))
    found = tally.figures()
    assert sum(found["load"]) == pytest.approx(1)
    assert 0 <= found["agreement"] <= 1
    assert 0 < found["drop_top1"] < math.inf
    assert found["relative_margin"] <= 1
