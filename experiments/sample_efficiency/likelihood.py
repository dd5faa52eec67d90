"""Mean log-likelihood of a mixture, its gradient and its Hessian, in closed form.

N samples of a chunk, K experts, Q = 5 coordinates of an expert, P = K * Q.

log p(y | x) = logsumexp of joint - logsumexp of gate (``mixtures.py``). Both are functions of
three numbers an expert: u = beta0 + beta1 x, the mean m = a x + b, and s = log sigma. Their second
derivatives, weighted by the posterior r and the prior w, and the powers 1, x, x^2 of the design
make the Hessian, which automatic differentiation would take a pass for each coordinate to give.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.sample_efficiency.mixtures import (
    INTERCEPT,
    LOG_MASS,
    LOG_SIGMA,
    SLOPE,
    TILT,
    Gate,
    Sample,
    log_density,
    log_terms,
    means,
)

CHUNK = 4096  # samples; what a pass over them writes stays in the processor's cache

# Pairs of an expert's coordinates -> which second derivative (of uu, um, us, mm, ms, ss) and which
# power of x their entry of the Hessian is made of.
_BLOCK = {
    (LOG_MASS, LOG_MASS): (0, 0),
    (LOG_MASS, TILT): (0, 1),
    (TILT, TILT): (0, 2),
    (LOG_MASS, INTERCEPT): (1, 0),
    (LOG_MASS, SLOPE): (1, 1),
    (TILT, INTERCEPT): (1, 1),
    (TILT, SLOPE): (1, 2),
    (LOG_MASS, LOG_SIGMA): (2, 0),
    (TILT, LOG_SIGMA): (2, 1),
    (INTERCEPT, INTERCEPT): (3, 0),
    (SLOPE, INTERCEPT): (3, 1),
    (SLOPE, SLOPE): (3, 2),
    (INTERCEPT, LOG_SIGMA): (4, 0),
    (SLOPE, LOG_SIGMA): (4, 1),
    (LOG_SIGMA, LOG_SIGMA): (5, 0),
}


class Derivatives(NamedTuple):
    """Of the mean log-likelihood."""

    value: Tensor
    gradient_P: Tensor
    hessian_PP: Tensor
    information_P: Tensor  # mean squared score: the scale of each coordinate


class _AffinitySlopes(NamedTuple):
    """First and second derivative of the logarithm of the affinity."""

    first_KN: Tensor
    second_KN: Tensor


def mean_log_likelihood(gate: Gate, theta_KQ: Tensor, sample: Sample) -> float:
    chunks = (log_density(gate, theta_KQ, chunk).sum() for chunk in _chunks(sample))
    return float(torch.stack(list(chunks)).sum()) / len(sample.x_N)


def derivatives(gate: Gate, theta_KQ: Tensor, sample: Sample) -> Derivatives:
    sums = [_chunk_sums(gate, theta_KQ, chunk) for chunk in _chunks(sample)]
    return Derivatives(
        *(torch.stack(parts).sum(dim=0) / len(sample.x_N) for parts in zip(*sums, strict=True))
    )


def _chunks(sample: Sample) -> Iterator[Sample]:
    pairs = zip(sample.x_N.split(CHUNK), sample.y_N.split(CHUNK), strict=True)
    return (Sample(x_N, y_N) for x_N, y_N in pairs)


def _chunk_sums(gate: Gate, theta_KQ: Tensor, sample: Sample) -> Derivatives:
    """The derivatives, summed over samples instead of averaged."""
    x_N, y_N = sample
    terms = log_terms(gate, theta_KQ, sample)
    log_joint_N = torch.logsumexp(terms.joint_KN, dim=0)
    log_gate_N = torch.logsumexp(terms.gate_KN, dim=0)
    r_KN = torch.exp(terms.joint_KN - log_joint_N)
    w_KN = torch.exp(terms.gate_KN - log_gate_N)
    h1_KN, h2_KN = _affinity_slopes(gate, means(theta_KQ, x_N))
    precision_K1 = torch.exp(-theta_KQ[:, LOG_SIGMA, None])
    e_KN = (y_N - means(theta_KQ, x_N)) * precision_K1

    # d joint = (1, jm, js) in (u, m, s) and d gate = (1, h1, 0), each within its own expert.
    jm_KN = h1_KN + e_KN * precision_K1
    e2_KN = e_KN.square()
    js_KN = e2_KN - 1
    second_K6N = torch.stack(
        [
            r_KN - w_KN,
            r_KN * jm_KN - w_KN * h1_KN,
            r_KN * js_KN,
            r_KN * (h2_KN - precision_K1.square() + jm_KN.square())
            - w_KN * (h2_KN + h1_KN.square()),
            r_KN * (jm_KN * js_KN - 2 * e_KN * precision_K1),
            r_KN * (js_KN.square() - 2 * e2_KN),
        ],
        dim=1,
    )
    joint_PN = _by_coordinate(r_KN, r_KN * jm_KN, r_KN * js_KN, x_N)
    gate_PN = _by_coordinate(w_KN, w_KN * h1_KN, torch.zeros_like(w_KN), x_N)
    score_PN = joint_PN - gate_PN
    return Derivatives(
        (log_joint_N - log_gate_N).sum(),
        score_PN.sum(dim=1),
        _block_diagonal(second_K6N, x_N) - joint_PN @ joint_PN.T + gate_PN @ gate_PN.T,
        score_PN.square().sum(dim=1),
    )


def _affinity_slopes(gate: Gate, mean_KN: Tensor) -> _AffinitySlopes:
    if gate is Gate.SOFTMAX:
        return _AffinitySlopes(torch.zeros_like(mean_KN), torch.zeros_like(mean_KN))
    sigmoid_KN = torch.sigmoid(mean_KN)
    first_KN = sigmoid_KN / F.softplus(mean_KN)
    return _AffinitySlopes(first_KN, first_KN * (1 - sigmoid_KN - first_KN))


def _by_coordinate(u_KN: Tensor, m_KN: Tensor, s_KN: Tensor, x_N: Tensor) -> Tensor:
    """Derivatives in (u, m, s) as derivatives in an expert's coordinates, (P, N)."""
    by_coordinate = {
        LOG_MASS: u_KN,
        TILT: u_KN * x_N,
        SLOPE: m_KN * x_N,
        INTERCEPT: m_KN,
        LOG_SIGMA: s_KN,
    }
    return torch.stack([by_coordinate[q] for q in range(5)], dim=1).flatten(0, 1)


def _block_diagonal(second_K6N: Tensor, x_N: Tensor) -> Tensor:
    """The part of the Hessian within each expert, summed over samples, (P, P)."""
    powers_N3 = torch.stack([torch.ones_like(x_N), x_N, x_N.square()], dim=1)
    moments_K63 = second_K6N @ powers_N3
    experts = len(second_K6N)
    blocks_KQKQ = x_N.new_zeros(experts, 5, experts, 5)
    k = torch.arange(experts)
    for (p, q), (derivative, power) in _BLOCK.items():
        blocks_KQKQ[k, p, k, q] = moments_K63[:, derivative, power]
        blocks_KQKQ[k, q, k, p] = moments_K63[:, derivative, power]
    return blocks_KQKQ.reshape(experts * 5, experts * 5)
