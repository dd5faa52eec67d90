"""What choices across tokens share.  G groups of S tokens, T = G*S, E experts, K a token, D width.

``expert_choice`` and ``usmoe`` against their own loops: test_expert_choice.py, test_usmoe.py.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, MoEConfig, MoELayer, RoutingContext
from llava_compete.moe.routers import RouterSpec
from llava_compete.moe.routers.across import best_pairs, best_tokens, grouped, places
from llava_compete.moe.sequences import Sequences
from llava_compete.processor import prompt_batch
from tests import tiny
from tests.moe.reference import run_expert

G, S, E, K, D = 3, 7, 4, 2, 8
T = G * S
MASK = torch.tensor([True] * 7 + [False] * 3 + [True] * 4 + [True] + [False] * 6)
NAMES = ["expert_choice", "usmoe"]
every_name = pytest.mark.parametrize("name", NAMES)
shapes = pytest.mark.parametrize(
    ("num_experts", "top_k"), [(4, 2), (5, 2), (3, 3), (8, 1), (1, 1), (6, 4)]
)


def make_router(name, top_k=K, **options):
    return ROUTERS[name](
        RouterSpec(width=D, out_width=D, num_experts=E, top_k=top_k, seed=0, options=options)
    )


def make_layer(name, top_k=K, identical=False, **options):
    config = MoEConfig(num_experts=E, top_k=top_k, router=name, router_options=options)
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    if identical:
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
    return MoELayer(experts, config, index=0)


def route(router, x_TD, mask_T=None, sequence=None):
    sequences = None if sequence is None else Sequences(sequence)
    return router(x_TD, None, RoutingContext(mask_T=mask_T, sequences=sequences))


def best_by_loop(cells, count):
    """The ``count`` largest of [(score, place)], of equal ones the first; their places."""
    return {place for _, place in sorted(cells, key=lambda cell: (-cell[0], cell[1]))[:count]}


@shapes
@pytest.mark.parametrize("ties", [False, True])
def test_every_expert_takes_its_best_kept_tokens(num_experts, top_k, ties):
    scores_TE = torch.randn(T, num_experts, dtype=torch.float64)
    if ties:
        scores_TE = scores_TE.round()
    chosen_GSE = best_tokens(grouped(scores_TE, Sequences(S), MASK), top_k)
    for group in range(G):
        rows = range(group * S, group * S + S)
        kept = [row for row in rows if MASK[row]]
        taken = -(-len(kept) * top_k // num_experts)
        for expert in range(num_experts):
            cells = [(scores_TE[row, expert].item(), row) for row in kept]
            wanted = best_by_loop(cells, taken)
            assert {row for row in rows if chosen_GSE[group, row % S, expert]} == wanted
            assert len(wanted) == taken


@shapes
@pytest.mark.parametrize("ties", [False, True])
def test_the_best_pairs_of_a_group_are_taken(num_experts, top_k, ties):
    scores_TE = torch.randn(T, num_experts, dtype=torch.float64)
    if ties:
        scores_TE = scores_TE.round()
    chosen_GSE = best_pairs(grouped(scores_TE, Sequences(S), MASK), top_k)
    for group in range(G):
        kept = [row for row in range(group * S, group * S + S) if MASK[row]]
        cells = [(scores_TE[row, e].item(), (row, e)) for row in kept for e in range(num_experts)]
        wanted = best_by_loop(cells, len(kept) * top_k)
        got = {(group * S + row, e) for row, e in chosen_GSE[group].nonzero().tolist()}
        assert got == wanted
        assert len(wanted) == len(kept) * top_k


def test_of_equal_scores_the_earlier_token_comes_first_and_then_the_lower_expert():
    assert places(torch.tensor([1.0, 3.0, 1.0, 3.0])).tolist() == [2, 0, 3, 1]
    groups = grouped(torch.zeros(4, 3), Sequences(4), None)
    assert best_tokens(groups, 1)[0].tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert (
        best_pairs(groups, 1)[0].tolist() == [[True] * 3, [True, False, False]] + [[False] * 3] * 2
    )


@pytest.mark.parametrize("choose", [best_tokens, best_pairs])
def test_padding_is_never_chosen_whatever_is_in_it(choose):
    scores_TE = torch.randn(T, E)
    wanted_GSE = choose(grouped(scores_TE, Sequences(S), MASK), K)
    for rubbish in (1e30, float("inf"), float("nan")):
        filled_TE = torch.where(MASK[:, None], scores_TE, rubbish)
        assert torch.equal(choose(grouped(filled_TE, Sequences(S), MASK), K), wanted_GSE)
    assert not wanted_GSE.flatten(0, 1)[~MASK].any()
    assert not choose(grouped(scores_TE, Sequences(S), torch.zeros_like(MASK)), K).any()


@every_name
@pytest.mark.parametrize("renormalise", [False, True])
def test_a_sequence_is_routed_as_if_it_were_alone_and_without_padding(name, renormalise):
    router, x_TD = make_router(name, renormalise=renormalise), torch.randn(T, D)
    together = route(router, x_TD, MASK, S)
    for group in range(G):
        rows = torch.arange(T).view(G, S)[group]
        rows = rows[MASK[rows]]
        alone = route(router, x_TD[rows])
        assert torch.equal(together.ids_TK[rows], alone.ids_TK)
        assert_close(together.weights_TK[rows], alone.weights_TK)
    assert (together.ids_TK[~MASK] == E).all()


@every_name
def test_the_order_of_the_sequences_changes_nothing(name):
    layer, x_GSD = make_layer(name), torch.randn(G, S, D)
    layer.mask_T = MASK
    wanted_GSD, wanted_losses = layer(x_GSD), layer.last_routing.losses
    order = torch.tensor([2, 0, 1])
    layer.mask_T = MASK.view(G, S)[order].flatten()
    assert_close(layer(x_GSD[order]), wanted_GSD[order])
    assert_close(layer.last_routing.losses, wanted_losses)


@every_name
def test_in_scope_batch_all_sequences_are_one(name):
    x_TD = torch.randn(T, D)
    batch = route(make_router(name, scope="batch"), x_TD, MASK, S)
    assert torch.equal(batch.ids_TK, route(make_router(name), x_TD, MASK).ids_TK)
    assert not torch.equal(batch.ids_TK, route(make_router(name), x_TD, MASK, S).ids_TK)


@every_name
@pytest.mark.parametrize("scope", ["sequence", "batch", "token"])
def test_only_in_scope_token_can_no_later_token_move_an_earlier_one(name, scope):
    router, x_TD = make_router(name, scope=scope), torch.randn(T, D)
    before = route(router, x_TD).ids_TK[:-5]
    x_TD[-5:] = 30 * torch.randn(5, D)
    after = route(router, x_TD).ids_TK[:-5]
    assert router.sees_future == (scope != "token")
    assert torch.equal(before, after) == (scope == "token")


@every_name
def test_in_scope_token_a_token_takes_its_own_best_experts(name):
    router, x_TD = make_router(name, scope="token"), torch.randn(T, D)
    routing = route(router, x_TD, MASK, S)
    plain = ROUTERS["topk"](RouterSpec(width=D, out_width=D, num_experts=E, top_k=K, seed=0))
    assert torch.equal(routing.ids_TK, route(plain, x_TD).ids_TK)
    assert_close(routing.weights_TK, routing.scores_TE.gather(1, routing.ids_TK))
    assert routing.most_pairs is None


@every_name
@pytest.mark.parametrize("scope", ["sequence", "token"])
def test_renormalised_weights_keep_their_ratios_and_sum_to_one_where_there_is_an_expert(
    name, scope
):
    x_TD = 30 * torch.randn(T, D)
    plain = route(make_router(name, 1, scope=scope), x_TD, MASK, S)
    scaled = route(make_router(name, 1, scope=scope, renormalise=True), x_TD, MASK, S)
    sums_T1 = plain.weights_TK.sum(dim=-1, keepdim=True)
    assert_close(scaled.weights_TK * sums_T1, plain.weights_TK)
    some_T = (plain.ids_TK != E).any(dim=-1)
    assert_close(scaled.weights_TK.sum(dim=-1), some_T.float())
    if scope == "sequence":
        assert not some_T[MASK].all()
        none_T = MASK & ~some_T
        assert_close(plain.metrics["without_expert"], none_T.sum() / MASK.sum())


@every_name
def test_by_token_and_renormalised_identical_experts_give_what_one_of_them_gives(name):
    layer = make_layer(name, identical=True, scope="token", renormalise=True)
    x_GSD = torch.randn(G, S, D)
    alone = run_expert(layer.experts, 0, x_GSD.view(T, D))
    assert_close(layer(x_GSD), alone.view(G, S, D))


@every_name
def test_a_token_without_an_expert_gets_nothing_and_gives_no_gradient(name):
    layer, x_GSD = make_layer(name, 1), (30 * torch.randn(G, S, D)).requires_grad_()
    y_TD = layer(x_GSD).view(T, D)
    none_T = (layer.last_routing.ids_TK == E).all(dim=-1)
    assert none_T.any()
    assert not y_TD[none_T].any()
    y_TD.square().sum().backward()
    assert not x_GSD.grad.view(T, D)[none_T].any()
    assert x_GSD.grad.view(T, D)[~none_T].abs().sum(dim=-1).gt(0).all()


@pytest.mark.parametrize("name", [*NAMES, "expert_race"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_the_device(name, training):
    with FakeTensorMode():  # its tensors have no values: who asks for one fails
        router, mask_T = make_router(name).train(training), torch.ones(T, dtype=torch.bool)
        router.begin_step(0, 1)
        routing = route(router, torch.randn(T, D), mask_T, S)
        (routing.weights_TK.sum() + sum(routing.losses.values())).backward()
        router.end_step()
        assert routing.ids_TK.shape == (T, E)


@every_name
@pytest.mark.parametrize("sequence", [S, None])
def test_the_host_knows_how_many_pairs_there_are_at_most(name, sequence):
    router, x_TD = make_router(name), torch.randn(T, D)
    full = route(router, x_TD, None, sequence)
    pairs = int((full.ids_TK != E).sum())
    assert pairs == full.most_pairs
    assert T * K <= pairs < T * K + E * (G if sequence else 1)
    assert route(router, x_TD, MASK, sequence).most_pairs == pairs


@every_name
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "sequense"}, "scope='sequense' is not known; did you mean sequence"),
        ({"scope": ""}, "scope='' is not known; known: batch, sequence, token"),
        ({"capacity": 2}, "router_options: 'capacity' is no option of"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router=name, router_options=options)


def make_prompt(processor):
    return prompt_batch(processor, [[{"role": "user", "content": "Hi"}]], [[]])


@every_name
def test_text_is_generated_in_scope_token_and_refused_in_the_others(moe, name):
    parts = ["language_model"]
    for scope in ("sequence", "batch"):
        model, processor = moe(router=name, parts=parts, router_options={"scope": scope})
        with pytest.raises(ValueError, match=rf"{name} .*router_options={{'scope': 'token'}}"):
            model.eval().generate(**make_prompt(processor), max_new_tokens=2)
    model, processor = moe(router=name, parts=parts, router_options={"scope": "token"})
    prompt = make_prompt(processor)
    ids = model.eval().generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=[])
    whole = torch.cat([prompt["input_ids"], ids], dim=1)
    assert torch.equal(model(whole).logits[:, -4:-1].argmax(dim=-1), ids)


@every_name
def test_a_projector_may_look_across_a_picture_while_text_is_generated(moe, name):
    model, processor = moe(router=name, parts=["projector"])
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = prompt_batch(processor, [[{"role": "user", "content": content}]], [[tiny.draw(1)]])
    ids = model.eval().generate(**prompt, max_new_tokens=2, do_sample=False, eos_token_id=[])
    assert ids.shape == (1, 2)


@every_name
def test_more_padding_and_other_rows_change_no_loss_of_the_model(moe, name):
    model, processor = moe(router=name)
    model.train()
    short, both = (tiny.make_batch(processor, rows) for rows in ([0], [0, 2]))
    assert both["input_ids"].shape[1] > short["input_ids"].shape[1]
    alone, together = model(**short), model(**both)
    assert_close(together.token_losses_A[: len(alone.token_losses_A)], alone.token_losses_A)
    assert torch.isfinite(together.loss)
