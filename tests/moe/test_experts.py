"""Stacked experts against a loop that runs one expert on one token at a time, in float64.

T tokens, E experts, K chosen per token, D input, F hidden, O output width.
"""

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import Experts
from tests.moe.reference import run_expert

T, E, K, D, HIDDEN, OUT = 9, 4, 2, 8, 24, 16
KINDS = [
    pytest.param(gated, bias, activation, id=f"{activation}-gated={gated}-bias={bias}")
    for gated in (True, False)
    for bias in (True, False)
    for activation in ("silu", "gelu", "gelu_pytorch_tanh", "relu", "linear")
]
kinds = pytest.mark.parametrize(("gated", "bias", "activation"), KINDS)


def make_experts(gated=True, bias=False, activation="silu", dtype=torch.float64):
    return Experts(E, D, HIDDEN, OUT, activation=activation, gated=gated, bias=bias).to(dtype)


def loop(experts, x_TD, ids_TK, weights_TK):
    rows = []
    for x_D, ids_K, weights_K in zip(x_TD, ids_TK.tolist(), weights_TK, strict=True):
        row_O = torch.zeros(OUT, dtype=x_D.dtype)
        for expert, weight in zip(ids_K, weights_K, strict=True):
            if expert < E:
                row_O = row_O + weight * run_expert(experts, expert, x_D[None])[0]
        rows.append(row_O)
    return torch.stack(rows)


def compete_by_loop(experts, x_TD):
    """Affinities of all experts, and the winners' outputs in the order of their strength."""
    outputs_TEO = torch.stack([run_expert(experts, e, x_TD) for e in range(E)], dim=1)
    affinity_TE = torch.log(1 + torch.exp(outputs_TEO)).mean(dim=-1)
    winners = [sorted(range(E), key=lambda e, row=row: -row[e])[:K] for row in affinity_TE.tolist()]
    outputs = [outputs_EO[ids] for outputs_EO, ids in zip(outputs_TEO, winners, strict=True)]
    return affinity_TE, torch.tensor(winners), torch.stack(outputs)


def tokens(num=T, dtype=torch.float64):
    return torch.randn(num, D, dtype=dtype)


def random_choice(num=T, top_k=K):
    ids_TK = torch.rand(num, E).topk(top_k, dim=-1).indices
    return ids_TK, torch.rand(num, top_k, dtype=torch.float64)


def gradients(experts, inputs, run):
    """Gradients of the inputs and of every parameter under fixed random cotangents."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    outputs = [out for out in run(*inputs) if out.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    cotangents = [_random_like(o, generator) for o in outputs]
    names = [*range(len(inputs)), *dict(experts.named_parameters())]
    found = torch.autograd.grad(outputs, [*inputs, *experts.parameters()], cotangents)
    return dict(zip(names, found, strict=True))


def _random_like(out, generator):
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def assert_gradients_close(got, wanted, **tolerances):
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert_close(got[name], wanted[name], msg=lambda text, n=name: f"{n}: {text}", **tolerances)


def assert_mixture_equals_loop(experts, x_TD, ids_TK, weights_TK):
    assert_close(experts(x_TD, ids_TK, weights_TK), loop(experts, x_TD, ids_TK, weights_TK))
    got = gradients(experts, [x_TD, weights_TK], lambda x, w: [experts(x, ids_TK, w)])
    wanted = gradients(experts, [x_TD, weights_TK], lambda x, w: [loop(experts, x, ids_TK, w)])
    assert_gradients_close(got, wanted)


@kinds
def test_chosen_experts_and_all_gradients_equal_the_loop(gated, bias, activation):
    assert_mixture_equals_loop(make_experts(gated, bias, activation), tokens(), *random_choice())


@kinds
@pytest.mark.parametrize("span", [None, 9, 4, 1], ids=lambda span: f"span={span}")
def test_a_competition_and_all_gradients_equal_the_loop(gated, bias, activation, span):
    """Kept, and run again in the backward over at most so many tokens, the last span shorter."""
    experts, x_TD = make_experts(gated, bias, activation), tokens()
    if span is not None:
        experts.competition_budget = span * (E * OUT + 6 * HIDDEN) * x_TD.element_size()
    for got, wanted in zip(experts(x_TD, winners=K), compete_by_loop(experts, x_TD), strict=True):
        assert_close(got, wanted)
    got = gradients(experts, [x_TD], lambda x: experts(x, winners=K))
    wanted = gradients(experts, [x_TD], lambda x: compete_by_loop(experts, x))
    assert_gradients_close(got, wanted)


def test_a_competition_beyond_its_budget_keeps_its_input_and_the_winners_alone():
    experts, x_TD = make_experts(), tokens(64).requires_grad_()
    kept = {}
    for budget in (None, 20_000):
        experts.competition_budget = budget
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, _same):
            experts(x_TD, winners=K)
        own = {id(parameter) for parameter in experts.parameters()}
        kept[budget] = sum(t.nbytes for t in saved if id(t) not in own)
    assert kept[20_000] == x_TD.nbytes + 64 * K * (OUT + 1) * 8  # winners' outputs and ids
    assert kept[None] == kept[20_000] + E * 64 * (2 * HIDDEN + OUT) * 8


def _same(tensor):
    return tensor


@kinds
@pytest.mark.parametrize("budget", [None, 4000])
def test_without_the_losers_gradient_their_affinities_are_constants(
    gated, bias, activation, budget
):
    experts, x_TD = make_experts(gated, bias, activation), tokens()
    experts.competition_budget = budget

    def reference(x_TD):
        affinity_TE, ids_TK, outputs_TKO = compete_by_loop(experts, x_TD)
        won_TE = torch.zeros_like(affinity_TE).scatter(1, ids_TK, 1.0).bool()
        return torch.where(won_TE, affinity_TE, affinity_TE.detach()), ids_TK, outputs_TKO

    def run(x_TD):
        return experts(x_TD, winners=K, losers_gradient=False)

    for got, wanted in zip(run(x_TD), reference(x_TD), strict=True):
        assert_close(got, wanted)
    assert_gradients_close(gradients(experts, [x_TD], run), gradients(experts, [x_TD], reference))


def test_all_outputs_are_each_experts_own_in_order():
    experts, x_TD = make_experts(bias=True), tokens()
    outputs_TEO = experts.all_outputs(x_TD)
    for expert in range(E):
        assert_close(outputs_TEO[:, expert], run_expert(experts, expert, x_TD))


@pytest.mark.parametrize(
    "ids_TK",
    [
        pytest.param(torch.full((T, 1), 2), id="one expert takes all"),
        pytest.param(torch.tensor([[1, 3]]), id="a single token"),
        pytest.param(torch.tensor([[3, 0]] * T), id="empty experts between"),
        pytest.param(torch.tensor([[1, 1]] * T), id="the same expert twice"),
        pytest.param(torch.empty(0, 2, dtype=torch.int64), id="no token"),
    ],
)
def test_uneven_loads_equal_the_loop(ids_TK):
    weights_TK = torch.rand(ids_TK.shape, dtype=torch.float64)
    experts, x_TD = make_experts(bias=True), tokens(len(ids_TK))
    if len(ids_TK):
        assert_mixture_equals_loop(experts, x_TD, ids_TK, weights_TK)
    else:
        assert experts(x_TD, ids_TK, weights_TK).shape == (0, OUT)


def test_an_expert_nobody_chose_gets_a_zero_gradient():
    experts = make_experts(bias=True)
    weights_T1 = torch.ones(T, 1, dtype=torch.float64)
    experts(tokens(), torch.full((T, 1), 2), weights_T1).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad[2].abs().sum() > 0
        others = parameter.grad[torch.arange(E) != 2]
        assert torch.equal(others, torch.zeros_like(others))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("most_pairs", [None, 15])
def test_no_expert_adds_nothing_to_the_output_and_to_any_gradient(gated, bias, most_pairs):
    experts, x_TD = make_experts(gated, bias), tokens()
    ids_TK, weights_TK = random_choice()
    ids_TK[0] = E
    ids_TK[3, 1] = E
    out_TO = experts(x_TD, ids_TK, weights_TK, most_pairs)
    assert torch.equal(out_TO[0], torch.zeros(OUT, dtype=torch.float64))
    got = gradients(experts, [x_TD, weights_TK], lambda x, w: [experts(x, ids_TK, w, most_pairs)])
    assert torch.equal(got[0][0], torch.zeros(D, dtype=torch.float64))
    assert not got[1][ids_TK == E].any()
    assert_mixture_equals_loop(experts, x_TD, ids_TK, weights_TK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_expert_stays_clean_when_fresh_memory_is_full_of_nan(dtype):
    """Rows behind the last group are never written, forward and backward."""
    experts, x_TD = make_experts(bias=True, dtype=dtype), tokens(64, dtype)
    ids_TK, weights_TK = random_choice(64)
    ids_TK[::2] = E
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = gradients(experts, [x_TD, weights_TK.to(dtype)], lambda x, w: [experts(x, ids_TK, w)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got[0][::2], torch.zeros(32, D, dtype=dtype))
    for gradient in got.values():
        assert gradient.isfinite().all()


def test_no_expert_for_any_token_gives_zeros_with_a_graph():
    experts, x_TD = make_experts(bias=True), tokens().requires_grad_()
    out_TO = experts(x_TD, torch.full((T, K), E), torch.rand(T, K))
    assert torch.equal(out_TO, torch.zeros(T, OUT, dtype=torch.float64))
    out_TO.sum().backward()
    for gradient in [x_TD.grad, *(p.grad for p in experts.parameters())]:
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("frozen", ["x", "experts", "weights"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen):
    experts = make_experts(bias=True)
    ids_TK, weights_TK = random_choice()
    given = {"x": tokens(), "weights": weights_TK}
    whole = gradients(experts, [given["x"], weights_TK], lambda x, w: [experts(x, ids_TK, w)])
    leaves = {name: value.requires_grad_(name != frozen) for name, value in given.items()}
    experts.requires_grad_(frozen != "experts")
    out_TO = experts(leaves["x"], ids_TK, leaves["weights"])
    generator = torch.Generator().manual_seed(1)
    out_TO.backward(torch.randn(out_TO.shape, generator=generator, dtype=out_TO.dtype))
    for key, leaf in ((0, leaves["x"]), (1, leaves["weights"]), *experts.named_parameters()):
        if leaf.requires_grad:
            assert torch.equal(leaf.grad, whole[key]), key
        else:
            assert leaf.grad is None, key


def test_a_token_does_not_depend_on_its_neighbours():
    experts, x_TD, (ids_TK, weights_TK) = make_experts(), tokens(), random_choice()
    whole_TO = experts(x_TD, ids_TK, weights_TK)
    order = torch.randperm(T)
    assert_close(experts(x_TD[order], ids_TK[order], weights_TK[order]), whole_TO[order])
    assert_close(experts(x_TD, ids_TK.flip(-1), weights_TK.flip(-1)), whole_TO)


@pytest.mark.parametrize("num", [1, 9, 200], ids=lambda num: f"{num} tokens")
def test_bfloat16_stays_bfloat16_and_near_float64(num):
    """One token, fewer pairs than a group's rows, and more."""
    experts, x_TD, (ids_TK, weights_TK) = make_experts(bias=True), tokens(num), random_choice(num)
    mixed_TO = loop(experts, x_TD, ids_TK, weights_TK)
    outputs_TEO = torch.stack([run_expert(experts, e, x_TD) for e in range(E)], dim=1)
    experts.bfloat16()
    low_TD = x_TD.bfloat16()
    for got, wanted in (
        (experts(low_TD, ids_TK, weights_TK.bfloat16()), mixed_TO),
        (experts.all_outputs(low_TD), outputs_TEO),
    ):
        assert got.dtype == torch.bfloat16
        assert_close(got.double(), wanted, atol=0.03, rtol=0.03)
    assert experts(low_TD, winners=K).affinity_TE.dtype == torch.float32


def test_gradients_in_bfloat16_are_near_those_in_float64():
    experts, x_TD, (ids_TK, weights_TK) = make_experts(bias=True), tokens(200), random_choice(200)

    def run(x_TD, weights_TK):
        affinity_TE = experts(x_TD, winners=E).affinity_TE
        return [experts(x_TD, ids_TK, weights_TK), experts.all_outputs(x_TD), affinity_TE]

    experts.bfloat16()
    low = [x_TD.bfloat16(), weights_TK.bfloat16()]
    got = gradients(experts, low, run)
    experts.double()
    for name, wanted in gradients(experts, [value.double() for value in low], run).items():
        error = (got[name].double() - wanted).norm() / wanted.norm()
        assert error < 0.02, (name, error)


@pytest.mark.parametrize("gated", [True, False])
def test_compiled_experts_and_their_gradients_are_the_plain_ones(gated):
    experts, x_TD, (ids_TK, weights_TK) = make_experts(gated), tokens(), random_choice()
    both = lambda x, w: [experts(x, ids_TK, w), *experts(x, winners=K)]  # noqa: E731
    plain, plain_gradients = both(x_TD, weights_TK), gradients(experts, [x_TD, weights_TK], both)
    experts.compile_elementwise()
    for got, wanted in zip(both(x_TD, weights_TK), plain, strict=True):
        assert_close(got, wanted)
    assert_gradients_close(gradients(experts, [x_TD, weights_TK], both), plain_gradients)


def test_experts_can_be_a_part_of_what_torch_compiles_whole():
    experts, x_TD, (ids_TK, weights_TK) = make_experts(bias=True), tokens(), random_choice()
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x_TD, ids_TK, weights_TK), experts(x_TD, ids_TK, weights_TK))
    got = gradients(experts, [x_TD, weights_TK], lambda x, w: [compiled(x, ids_TK, w)])
    wanted = gradients(experts, [x_TD, weights_TK], lambda x, w: [experts(x, ids_TK, w)])
    assert_gradients_close(got, wanted)


def test_fresh_experts_differ_and_their_scale_is_that_of_a_linear_layer():
    experts = Experts(2, 64, 256, 64, activation="silu", gated=True, bias=True)
    assert not torch.equal(experts.down_proj[0], experts.down_proj[1])
    for weight, fan_in in (
        (experts.gate_proj, 64),
        (experts.up_proj, 64),
        (experts.down_proj, 256),
    ):
        linear = torch.nn.Linear(fan_in, 512).weight
        assert_close(weight.std(), linear.std(), rtol=0.05, atol=0)


def test_experts_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        experts = make_experts(bias=True)
    assert all(parameter.is_meta for parameter in experts.parameters())


@pytest.mark.parametrize("gated", [True, False])
def test_autocast_runs_float32_weights_in_bfloat16_and_gives_them_float32_gradients(gated):
    experts = make_experts(gated, bias=True, dtype=torch.float32)
    x_TD, (ids_TK, weights_TK) = tokens(dtype=torch.float32), random_choice()
    halves = make_experts(gated, bias=True)
    halves.load_state_dict(experts.state_dict())
    halves.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        chosen = experts(x_TD, ids_TK, weights_TK)
        everything = experts(x_TD, winners=E).outputs_TKO
    low_TD = x_TD.bfloat16()
    assert torch.equal(chosen, halves(low_TD, ids_TK, weights_TK))
    assert torch.equal(everything, halves(low_TD, winners=E).outputs_TKO)
    (chosen.float().sum() + everything.float().sum()).backward()
    for parameter in experts.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0
