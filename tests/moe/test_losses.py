"""Each formula against a loop a reader can check by eye, and what the mask means."""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import losses

T, E, K, D = 7, 5, 3, 8
MASK = torch.tensor([True, True, False, True, True, False, True])


@pytest.fixture
def routing():
    """Logits, probabilities, ids and experts' outputs of T tokens."""
    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(T, E, generator=generator)
    probs_TE = logits_TE.softmax(dim=-1)
    ids_TK = torch.randn(T, E, generator=generator).topk(K, dim=-1).indices
    outputs_TKD = torch.randn(T, K, D, generator=generator)
    teacher_TE = torch.randn(T, E, generator=generator).softmax(dim=-1)
    return logits_TE, probs_TE, ids_TK, outputs_TKD, teacher_TE


def every_loss(routing, mask_T, rows=slice(None)):
    """All losses of some rows, by name."""
    logits_TE, probs_TE, ids_TK, outputs_TKD, teacher_TE = (tensor[rows] for tensor in routing)
    return {
        "balance": losses.load_balance(probs_TE, ids_TK, mask_T),
        "router_z": losses.router_z(logits_TE, mask_T),
        "distillation": losses.distillation(probs_TE, teacher_TE, ids_TK, theta=0.3, mask_T=mask_T),
        "outcome_distillation": losses.outcome_distillation(
            logits_TE, ids_TK, probs_TE.gather(1, ids_TK), mask_T
        ),
        "diversity": losses.diversity(outputs_TKD, mask_T),
    }


def test_balance_is_e_times_share_of_all_k_choices_times_mean_probability(routing):
    _, probs_TE, ids_TK, _, _ = routing
    expected = 0.0
    for expert in range(E):
        chosen = sum(id == expert for row in ids_TK.tolist() for id in row)
        probability = sum(row[expert] for row in probs_TE.tolist())
        expected += E * (chosen / (T * K)) * (probability / T)
    assert_close(losses.load_balance(probs_TE, ids_TK).item(), expected)


def test_balance_counts_every_choice_and_not_only_the_first(routing):
    _, probs_TE, ids_TK, _, _ = routing
    assert_close(
        losses.load_balance(probs_TE, ids_TK.flip(-1)), losses.load_balance(probs_TE, ids_TK)
    )
    first_only = losses.load_balance(probs_TE, ids_TK[:, :1])
    assert abs(first_only - losses.load_balance(probs_TE, ids_TK)) > 1e-3


def test_balance_is_one_when_uniform_and_e_when_all_go_to_one_expert():
    ids_TK = torch.arange(E)[:, None]
    assert_close(losses.load_balance(torch.full((E, E), 1 / E), ids_TK), torch.tensor(1.0))
    collapsed_TE = torch.nn.functional.one_hot(torch.zeros(T, dtype=torch.long), E).float()
    ids_TK = torch.zeros(T, 1, dtype=torch.long)
    assert_close(losses.load_balance(collapsed_TE, ids_TK), torch.tensor(float(E)))


def test_choice_share_leaves_out_pairs_without_an_expert():
    ids_TK = torch.tensor([[0, E], [1, 0], [E, E]])
    assert_close(losses.choice_share(ids_TK, E, None), torch.tensor([2, 1, 0, 0, 0]) / 3)
    nothing_TK = torch.full((3, 2), E)
    assert torch.equal(losses.choice_share(nothing_TK, E, None), torch.zeros(E))


def test_router_z_is_the_mean_squared_log_sum_of_exponentials(routing):
    logits_TE = routing[0]
    values = [math.log(sum(math.exp(z) for z in row)) ** 2 for row in logits_TE.tolist()]
    assert_close(losses.router_z(logits_TE).item(), sum(values) / T)


@pytest.mark.parametrize("theta", [0.0, 0.3])
def test_distillation_is_mse_over_all_plus_theta_times_mse_over_winners(routing, theta):
    _, student_TE, ids_TK, _, teacher_TE = routing
    expected = 0.0
    for student, teacher, winners in zip(
        student_TE.tolist(), teacher_TE.tolist(), ids_TK.tolist(), strict=True
    ):
        error = [(s - t) ** 2 for s, t in zip(student, teacher, strict=True)]
        expected += sum(error) / E + theta * sum(error[w] for w in winners) / K
    loss = losses.distillation(student_TE, teacher_TE, ids_TK, theta=theta)
    assert_close(loss.item(), expected / T)


def test_distillation_sends_gradient_to_the_student_only(routing):
    _, student_TE, ids_TK, _, teacher_TE = routing
    student_TE.requires_grad_()
    teacher_TE.requires_grad_()
    losses.distillation(student_TE, teacher_TE, ids_TK, theta=0.3).backward()
    assert student_TE.grad.abs().sum() > 0
    assert teacher_TE.grad is None


def test_outcome_distillation_is_zero_where_the_router_mixes_as_the_competition_did(routing):
    _, _, ids_TK, _, teacher_TE = routing
    weights_TK = teacher_TE.gather(1, ids_TK)
    weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    logits_TE = torch.full_like(teacher_TE, -100.0).scatter(1, ids_TK, weights_TK.log())
    loss = losses.outcome_distillation(logits_TE, ids_TK, weights_TK)
    assert_close(loss, torch.zeros_like(loss), atol=1e-6, rtol=0)
    other = losses.outcome_distillation(torch.zeros_like(logits_TE), ids_TK, weights_TK)
    assert other > 0.1


def test_outcome_distillation_sends_gradient_to_the_student_only(routing):
    logits_TE, _, ids_TK, _, teacher_TE = routing
    logits_TE, weights_TK = logits_TE.clone().requires_grad_(), teacher_TE.gather(1, ids_TK)
    weights_TK.requires_grad_()
    losses.outcome_distillation(logits_TE, ids_TK, weights_TK).backward()
    assert logits_TE.grad.abs().sum() > 0
    assert weights_TK.grad is None


def test_diversity_is_the_mean_cosine_over_k_times_k_minus_one_ordered_pairs(routing):
    outputs_TKD = routing[3]
    expected = 0.0
    for outputs_KD in outputs_TKD:
        for i in range(K):
            for j in range(K):
                if i != j:
                    cosine = torch.dot(outputs_KD[i], outputs_KD[j])
                    cosine /= outputs_KD[i].norm() * outputs_KD[j].norm()
                    expected += cosine.item() / (K * (K - 1))
    assert_close(losses.diversity(outputs_TKD).item(), expected / T)


def test_diversity_is_one_for_alike_minus_one_for_opposite_and_zero_without_a_pair():
    one_T1D = torch.randn(T, 1, D)
    assert_close(losses.diversity(torch.cat([one_T1D, 2 * one_T1D], 1)).item(), 1.0)
    assert_close(losses.diversity(torch.cat([one_T1D, -one_T1D], 1)).item(), -1.0)
    alone_T1D = one_T1D.requires_grad_()
    loss = losses.diversity(alone_T1D)
    loss.backward()
    assert loss == 0
    assert torch.equal(alone_T1D.grad, torch.zeros(T, 1, D))


def test_diversity_of_an_all_zero_output_has_a_finite_gradient():
    outputs_TKD = torch.zeros(T, K, D, requires_grad=True)
    losses.diversity(outputs_TKD).backward()
    assert outputs_TKD.grad.isfinite().all()


@pytest.mark.parametrize("name", ["balance", "router_z", "distillation", "diversity"])
def test_masking_tokens_is_the_same_as_not_having_them(routing, name):
    assert_close(every_loss(routing, MASK)[name], every_loss(routing, None, MASK)[name])
    kept_all = torch.ones(T, dtype=torch.bool)
    assert_close(every_loss(routing, kept_all)[name], every_loss(routing, None)[name])


@pytest.mark.parametrize("name", ["balance", "router_z", "distillation", "diversity"])
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf])
def test_rubbish_in_masked_tokens_reaches_neither_the_loss_nor_kept_gradients(
    routing, name, rubbish
):
    logits_TE, probs_TE, ids_TK, outputs_TKD, teacher_TE = routing
    clean = every_loss(routing, None, MASK)[name]
    dirty = [t.clone() for t in (logits_TE, probs_TE, outputs_TKD, teacher_TE)]
    for tensor in dirty:
        tensor[~MASK] = rubbish
        tensor.requires_grad_()
    loss = every_loss((dirty[0], dirty[1], ids_TK, dirty[2], dirty[3]), MASK)[name]
    assert_close(loss, clean)
    loss.backward()
    for tensor in dirty:
        assert tensor.grad is None or tensor.grad[MASK].isfinite().all()


@pytest.mark.parametrize("name", ["balance", "router_z", "distillation", "diversity"])
def test_no_kept_token_gives_zero_with_a_graph_and_zero_gradients(routing, name):
    leaves = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in routing]
    loss = every_loss(leaves, torch.zeros(T, dtype=torch.bool))[name]
    assert loss == 0
    loss.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert gradients
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ["balance", "router_z", "distillation", "diversity"])
def test_half_precision_inputs_give_float32_losses(routing, name):
    halves = [t.bfloat16() if t.is_floating_point() else t for t in routing]
    widened = [t.float() if t.is_floating_point() else t for t in halves]
    loss = every_loss(halves, MASK)[name]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, every_loss(widened, MASK)[name])
