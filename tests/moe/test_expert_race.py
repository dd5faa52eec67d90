"""Expert Race against a loop.  T tokens of a batch, E experts, K a token in the mean, D width."""

import copy

import pytest
import torch
from torch.testing import assert_close

from llava_compete import load, save
from llava_compete.moe import ROUTERS, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec, expert_race
from llava_compete.moe.routers.expert_race import similarity
from llava_compete.moe.sequences import Sequences
from llava_compete.processor import prompt_batch
from tests import tiny

T, S, D = 21, 7, 8
MASK = torch.tensor([True] * 7 + [False] * 3 + [True] * 4 + [True] + [False] * 6)
CONTEXT = RoutingContext(mask_T=MASK, sequences=Sequences(S))
shapes = pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (5, 2), (3, 3), (8, 1), (1, 1)])
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def make_router(num_experts=4, top_k=2, **options):
    return ROUTERS["expert_race"](
        RouterSpec(
            width=D, out_width=D, num_experts=num_experts, top_k=top_k, seed=0, options=options
        )
    )


def route(router, x_TD, context=CONTEXT):
    """The routing with logits in the dtype of x."""
    logits_TE = router.gate(x_TD)
    return router.route(x_TD, logits_TE, logits_TE.softmax(dim=-1), context)


def step(router, *batches):
    """An optimizer step of those (tokens, context) micro-batches."""
    router.begin_step(0, 1)
    for x_TD, context in batches:
        router(x_TD, None, context)
    router.end_step()


def smallest_chosen(router, x_TD, mask_T):
    kept_NE = router.gate(x_TD[mask_T]).detach()
    return kept_NE.flatten().sort(descending=True).values[len(kept_NE) * router.spec.top_k - 1]


def loop(weight_ED, x_TD, chosen_of):
    """{(token, expert): logit} of the chosen, and the similarity loss, scalar by scalar."""
    kept, num_experts = [row for row in range(T) if MASK[row]], len(weight_ED)
    logit = {(row, e): weight_ED[e] @ x_TD[row] for row in kept for e in range(num_experts)}
    weights = {pair: logit[pair] for pair in chosen_of(logit, len(kept))}
    prob = {}
    for row, expert in logit:
        total = sum(torch.exp(logit[row, other]) for other in range(num_experts))
        prob[row, expert] = torch.exp(logit[row, expert]) / total
    pairs = [(i, j) for i in range(num_experts) for j in range(num_experts)]
    alike = {(i, j): sum(prob[row, i] * prob[row, j] for row in kept) for i, j in pairs}
    together = {
        (i, j): sum((row, i) in weights and (row, j) in weights for row in kept) for i, j in pairs
    }
    own = sum(count for (i, j), count in together.items() if i == j)
    others = sum(count for (i, j), count in together.items() if i != j)
    loss = 0.0
    for i, j in pairs:
        if i == j and own:
            loss = loss + num_experts * together[i, j] / own * alike[i, j]
        elif i != j and others:
            loss = loss + (num_experts**2 - num_experts) * together[i, j] / others * alike[i, j]
    return weights, loss / len(kept)


@shapes
@precisions
@pytest.mark.parametrize("training", [True, False])
def test_choice_weights_loss_and_gradients_equal_the_loop(num_experts, top_k, dtype, training):
    router = make_router(num_experts, top_k).to(dtype).train(training)
    with torch.no_grad():
        router.gate.weight.mul_(30)
        router.state_threshold.fill_(0.4)
    x_TD, share_TE = torch.randn(T, D, dtype=dtype), torch.randn(T, num_experts, dtype=dtype)
    routing = route(router, x_TD)
    (routing.weights_TK * share_TE).sum().backward(retain_graph=True)
    from_weights_ED = router.gate.weight.grad.double()
    router.gate.weight.grad = None
    routing.losses["similarity"].backward()

    def chosen_of(logit, kept):
        if training:
            return sorted(logit, key=lambda pair: -logit[pair].item())[: kept * top_k]
        return [pair for pair in logit if logit[pair] >= 0.4]

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    weights, loss = loop(weight_ED, x_TD.double(), chosen_of)
    total = sum(value * share_TE[pair] for pair, value in weights.items())
    (wanted_ED,) = torch.autograd.grad(total, weight_ED, retain_graph=True)
    (wanted_loss_ED,) = torch.autograd.grad(loss, weight_ED)
    wanted_TE = torch.zeros(T, num_experts, dtype=torch.float64)
    for pair, value in weights.items():
        wanted_TE[pair] = value.detach()
    chosen_TE = routing.ids_TK != num_experts
    assert {tuple(pair) for pair in chosen_TE.nonzero().tolist()} == set(weights)
    assert (routing.ids_TK[chosen_TE] == chosen_TE.nonzero()[:, 1]).all()
    exact = (
        {"atol": 1e-11, "rtol": 1e-11} if dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    )
    assert_close(routing.weights_TK.double(), wanted_TE, **exact)
    assert_close(from_weights_ED, wanted_ED, **exact)
    assert_close(routing.losses["similarity"].double(), loss.detach(), **exact)
    assert_close(router.gate.weight.grad.double(), wanted_loss_ED, **exact)
    assert wanted_ED.norm() > 0.01


def test_similarity_is_one_where_all_is_uniform():
    probs_TE, everyone_TE = torch.full((6, 3), 1 / 3), torch.ones(6, 3, dtype=torch.bool)
    assert_close(similarity(probs_TE, everyone_TE), torch.tensor(1.0))
    assert_close(similarity(probs_TE, everyone_TE.new_zeros(6, 3)), torch.tensor(0.0))


def test_similarity_is_larger_where_experts_chosen_together_score_alike():
    chosen_TE = torch.tensor([[True, True, False, False], [False, False, True, True]] * 3)
    alike_TE = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]] * 3)
    apart_TE = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]] * 3)
    assert similarity(alike_TE, chosen_TE) > 2 * similarity(apart_TE, chosen_TE)


def test_the_race_is_over_all_sequences_of_the_batch():
    router, x_TD = make_router(), torch.randn(T, D)
    x_TD[:S] *= 30
    contexts = (RoutingContext(sequences=Sequences(S)), RoutingContext())
    plain, whole = (router(x_TD, None, context) for context in contexts)
    assert torch.equal(plain.ids_TK, whole.ids_TK)
    counts_T = (plain.ids_TK != 4).sum(dim=-1)
    assert counts_T.sum() == plain.most_pairs == T * 2
    assert counts_T.unique().numel() > 2


def test_inference_takes_each_token_alone_and_any_number_of_experts():
    router, x_TD = make_router(), torch.randn(T, D)
    step(router, (x_TD, RoutingContext()))
    router.state_threshold -= 1e-4  # else the last digit of one logit decides
    together = router.eval()(x_TD, None, RoutingContext())
    assert not router.sees_future
    assert together.most_pairs is None
    for token in range(T):
        alone = router(x_TD[token : token + 1], None, RoutingContext())
        assert torch.equal(alone.ids_TK[0], together.ids_TK[token])
    assert (together.ids_TK != 4).sum() == T * 2  # tau is the batch's own smallest chosen logit


def test_tau_is_the_first_steps_smallest_chosen_logit_and_then_its_moving_average():
    router, tau = make_router(momentum=0.9), None
    assert router.state_threshold == 0
    for count in range(4):
        x_TD = torch.randn(T, D)
        step(router, (x_TD, CONTEXT))
        smallest = smallest_chosen(router, x_TD, MASK)
        tau = smallest if tau is None else 0.9 * tau + 0.1 * smallest
        assert_close(router.state_threshold, tau)
        assert router.state_steps == count + 1


def test_micro_batches_of_a_step_count_by_their_tokens_and_move_tau_once():
    router, (one_TD, two_TD) = make_router(), torch.randn(2, T, D)
    step(router, (one_TD, CONTEXT), (two_TD, RoutingContext()))
    first, second = (
        smallest_chosen(router, one_TD, MASK),
        smallest_chosen(router, two_TD, MASK | True),
    )
    kept = int(MASK.sum())
    assert_close(router.state_threshold, (kept * first + T * second) / (kept + T))
    assert router.state_steps == 1


def test_ranks_agree_on_tau(monkeypatch):
    others = torch.tensor([5.0, 5 * 0.7])  # 5 tokens and 0.7 as the smallest chosen logit
    monkeypatch.setattr(expert_race, "sum_over_ranks", lambda value: value.add_(others))
    router, x_TD = make_router(), torch.randn(T, D)
    step(router, (x_TD, CONTEXT))
    kept, smallest = int(MASK.sum()), smallest_chosen(router, x_TD, MASK)
    assert_close(router.state_threshold, (kept * smallest + 5 * 0.7) / (kept + 5))
    idle = make_router()
    step(idle)  # a rank whose layer did not run takes part all the same
    assert_close(idle.state_threshold, torch.tensor(0.7))


def test_tau_stays_where_nothing_is_to_be_counted():
    router, x_TD = make_router(), torch.randn(T, D)
    step(router, (x_TD, CONTEXT))
    before = copy.deepcopy(router.state_dict())
    step(router)
    step(router, (x_TD, RoutingContext(mask_T=torch.zeros_like(MASK))))
    step(router, (torch.randn(T, D), RoutingContext(recording=False)))
    step(router.eval(), (torch.randn(T, D), CONTEXT))
    for name, value in router.state_dict().items():
        assert torch.equal(value, before[name])
    router.train()(torch.randn(T, D), None, CONTEXT)  # outside a step
    step(router)
    assert torch.equal(router.state_threshold, before["state_threshold"])


def test_state_keeps_its_dtype_in_a_cast_and_comes_back_with_the_weights():
    router = make_router()
    step(router, (torch.randn(T, D), CONTEXT))
    tau = router.state_threshold.clone()
    router.bfloat16()
    assert router.gate.weight.dtype == torch.bfloat16
    assert router.state_threshold.dtype == torch.float32
    other = make_router()
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.state_threshold, tau)
    assert other.state_steps == 1
    router.reset_parameters()
    assert router.state_threshold == 0
    assert router.state_steps == 0


def test_a_checkpoint_keeps_tau_and_generates(tmp_path):
    model, processor = load(tiny.make_checkpoint(tmp_path / "fresh", router="expert_race"))
    layers = [layer for part in model.moe_layers().values() for layer in part]
    for layer in layers:
        layer.router.begin_step(0, 1)
    model.train()(**tiny.make_batch(processor, range(3)))["loss"].backward()
    for layer in layers:
        layer.router.end_step()
        assert layer.router.state_steps == 1
        assert layer.router.state_threshold != 0
        assert layer.router.gate.weight.grad.abs().sum() > 0
    save(model, processor, tmp_path / "trained")
    again, _ = load(tmp_path / "trained", dtype="bfloat16")
    for name, value in model.state_dict().items():
        if ".router.state_" in name:
            assert torch.equal(again.state_dict()[name], value)
            assert again.state_dict()[name].dtype == value.dtype

    prompt = prompt_batch(processor, [[{"role": "user", "content": "Hi"}]], [[]])
    ids = model.eval().generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=[])
    whole = torch.cat([prompt["input_ids"], ids], dim=1)
    assert torch.equal(model(whole).logits[:, -4:-1].argmax(dim=-1), ids)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_an_impossible_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum} must be at least 0 and less than 1"):
        MoEConfig(router="expert_race", router_options={"momentum": momentum})
