"""Stacked experts against a loop that runs one expert on one token at a time.

T tokens, E experts, K chosen per token, D input, F hidden, O output width.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.activations import ACT2FN

from llava_compete.moe import Experts

T, E, K, D, HIDDEN, OUT = 9, 4, 2, 8, 24, 16
KINDS = [
    pytest.param(gated, bias, activation, id=f"{activation}-gated={gated}-bias={bias}")
    for gated in (True, False)
    for bias in (True, False)
    for activation in ("silu", "gelu", "gelu_pytorch_tanh", "relu")
]
kinds = pytest.mark.parametrize(("gated", "bias", "activation"), KINDS)


def make_experts(gated=True, bias=False, activation="silu"):
    return Experts(E, D, HIDDEN, OUT, activation=activation, gated=gated, bias=bias)


def run_one(experts, expert, x_D):
    """One expert's output on one token."""
    up = F.linear(
        x_D,
        experts.first_weight[expert],
        experts.up_bias[expert] if experts.up_bias is not None else None,
    )
    act = ACT2FN[experts.activation]
    hidden = act(up[:HIDDEN]) * up[HIDDEN:] if experts.gated else act(up)
    bias = experts.down_bias[expert] if experts.down_bias is not None else None
    return F.linear(hidden, experts.down_proj[expert], bias)


def loop(experts, x_TD, ids_TK):
    rows = [
        torch.stack(
            [torch.zeros(OUT) if expert == E else run_one(experts, expert, x_D) for expert in ids_K]
        )
        for x_D, ids_K in zip(x_TD, ids_TK.tolist(), strict=True)
    ]
    return torch.stack(rows)


def random_ids(tokens=T, top_k=K, num=E):
    return torch.rand(tokens, num).topk(top_k, dim=-1).indices


def gradients(experts, x_TD, run):
    """Gradients of x and of every parameter under a fixed random cotangent."""
    x_TD = x_TD.clone().requires_grad_()
    out = run(x_TD)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, [x_TD, *experts.parameters()], cotangent)
    return dict(zip(["x", *dict(experts.named_parameters())], grads, strict=True))


@kinds
def test_chosen_experts_equal_the_loop(gated, bias, activation):
    experts, x_TD, ids_TK = make_experts(gated, bias, activation), torch.randn(T, D), random_ids()
    assert_close(experts(x_TD, ids_TK), loop(experts, x_TD, ids_TK))


@kinds
def test_gradients_equal_the_loop(gated, bias, activation):
    experts, x_TD, ids_TK = make_experts(gated, bias, activation), torch.randn(T, D), random_ids()
    got = gradients(experts, x_TD, lambda x: experts(x, ids_TK))
    wanted = gradients(experts, x_TD, lambda x: loop(experts, x, ids_TK))
    for name in wanted:
        assert_close(got[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@kinds
def test_running_all_equals_asking_for_all_in_order(gated, bias, activation):
    experts, x_TD = make_experts(gated, bias, activation), torch.randn(T, D)
    all_TE = torch.arange(E).expand(T, E)
    assert_close(experts(x_TD), experts(x_TD, all_TE))
    got = gradients(experts, x_TD, experts)
    wanted = gradients(experts, x_TD, lambda x: experts(x, all_TE))
    for name in wanted:
        assert_close(got[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "ids_TK",
    [
        pytest.param(torch.full((T, 1), 2), id="one expert takes all"),
        pytest.param(torch.tensor([[1, 3]]), id="a single token"),
        pytest.param(torch.tensor([[3, 0]] * T), id="empty experts between"),
        pytest.param(torch.tensor([[1, 1]] * T), id="the same expert twice"),
    ],
)
def test_uneven_loads_equal_the_loop(ids_TK):
    experts, x_TD = make_experts(bias=True), torch.randn(len(ids_TK), D)
    assert_close(experts(x_TD, ids_TK), loop(experts, x_TD, ids_TK))
    got = gradients(experts, x_TD, lambda x: experts(x, ids_TK))
    for name, wanted in gradients(experts, x_TD, lambda x: loop(experts, x, ids_TK)).items():
        assert_close(got[name], wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_an_expert_nobody_chose_gets_a_zero_gradient():
    experts = make_experts(bias=True)
    experts(torch.randn(T, D), torch.full((T, 1), 2)).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad[2].abs().sum() > 0
        others = parameter.grad[torch.arange(E) != 2]
        assert torch.equal(others, torch.zeros_like(others))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_no_expert_gives_zero_output_and_adds_nothing_to_any_gradient(gated, bias):
    experts, x_TD = make_experts(gated, bias), torch.randn(T, D)
    ids_TK = random_ids()
    ids_TK[0] = E
    ids_TK[3, 1] = E
    out_TKO = experts(x_TD, ids_TK)
    assert torch.equal(out_TKO[ids_TK == E], torch.zeros(3, OUT))
    assert_close(out_TKO, loop(experts, x_TD, ids_TK))
    got = gradients(experts, x_TD, lambda x: experts(x, ids_TK))
    assert torch.equal(got["x"][0], torch.zeros(D))
    for name, wanted in gradients(experts, x_TD, lambda x: loop(experts, x, ids_TK)).items():
        assert_close(got[name], wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_no_expert_stays_clean_when_fresh_memory_is_full_of_nan():
    """The grouped product leaves rows behind its last group unwritten, forward and backward."""
    experts, x_TD = make_experts(bias=True), torch.randn(64, D)
    ids_TK = random_ids(64)
    ids_TK[::2] = E
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = gradients(experts, x_TD, lambda x: experts(x, ids_TK))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got["x"][::2], torch.zeros(32, D))
    for gradient in got.values():
        assert gradient.isfinite().all()


def test_no_expert_for_any_token_gives_zeros_with_a_graph():
    experts, x_TD = make_experts(bias=True), torch.randn(T, D, requires_grad=True)
    out_TKO = experts(x_TD, torch.full((T, K), E))
    assert torch.equal(out_TKO, torch.zeros(T, K, OUT))
    out_TKO.sum().backward()
    for gradient in [x_TD.grad, *(p.grad for p in experts.parameters())]:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_token_does_not_depend_on_its_neighbours():
    experts, x_TD, ids_TK = make_experts(), torch.randn(T, D), random_ids()
    order = torch.randperm(T)
    assert_close(experts(x_TD[order], ids_TK[order]), experts(x_TD, ids_TK)[order])
    assert_close(experts(x_TD, ids_TK.flip(-1)), experts(x_TD, ids_TK).flip(1))


def test_bfloat16_stays_bfloat16_and_near_float32():
    experts, x_TD, ids_TK = make_experts(bias=True), torch.randn(T, D), random_ids()
    wanted = experts(x_TD, ids_TK)
    experts.bfloat16()
    for got, reference in (
        (experts(x_TD.bfloat16(), ids_TK), wanted),
        (experts(x_TD.bfloat16()), experts.float()(x_TD)),
    ):
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), reference, atol=0.02, rtol=0.02)
        experts.bfloat16()


def test_fresh_experts_differ_and_their_scale_is_that_of_a_linear_layer():
    experts = Experts(2, 64, 256, 64, activation="silu", gated=True, bias=True)
    assert not torch.equal(experts.down_proj[0], experts.down_proj[1])
    for weight, fan_in in ((experts.gate_up_proj, 64), (experts.down_proj, 256)):
        linear = torch.nn.Linear(fan_in, 512).weight
        assert_close(weight.std(), linear.std(), rtol=0.05, atol=0)


def test_experts_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        experts = make_experts(bias=True)
    assert all(parameter.is_meta for parameter in experts.parameters())


@pytest.mark.parametrize("gated", [True, False])
def test_autocast_runs_float32_weights_in_bfloat16_and_gives_them_float32_gradients(gated):
    experts, x_TD, ids_TK = make_experts(gated, bias=True), torch.randn(T, D), random_ids()
    halves = make_experts(gated, bias=True)
    halves.load_state_dict(experts.state_dict())
    halves.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        chosen, everything = experts(x_TD, ids_TK), experts(x_TD)
    assert torch.equal(chosen, halves(x_TD.bfloat16(), ids_TK))
    assert torch.equal(everything, halves(x_TD.bfloat16()))
    (chosen.float().sum() + everything.float().sum()).backward()
    for parameter in experts.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0
