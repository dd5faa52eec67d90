"""Gaussian mixtures of linear experts with scalar x and y, under two gates.

N samples, K experts, Q = 5 coordinates of an expert.

    p(y | x) = sum over k of w_k(x) Normal(y; m_k(x), sigma_k^2),      m_k(x) = a_k x + b_k
    w_k(x)  proportional to  exp(beta0_k + beta1_k x) * affinity(m_k(x))

The softmax gate has affinity 1. The competition gate has affinity softplus(m), the response of the
expert itself (arXiv:2505.13380), and beta1 = 0. Its masses exp(beta0_k) are all 1 where the number
of experts is known, so the gate has no parameter. Where one expert too many is fitted they are
free: without masses a copy of an expert doubles its weight, softplus(m_1) / (2 softplus(m_1) +
softplus(m_2)), so no model with K + 1 experts in a compact set has the density of K experts, and
there would be no rate to speak of. Copies that share a mass leave the density as it is.
"""

import math
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# The coordinates of an expert: columns of theta_KQ. Mass is exp(beta0), tilt is beta1.
LOG_MASS, TILT, SLOPE, INTERCEPT, LOG_SIGMA = range(5)
COORDINATES = ("mass", "tilt", "slope", "intercept", "sigma")


class Gate(StrEnum):
    """What an expert's weight depends on."""

    SOFTMAX = "softmax"
    COMPETITION = "competition"


class Sample(NamedTuple):
    """float64 pairs of input and response."""

    x_N: Tensor
    y_N: Tensor


class LogTerms(NamedTuple):
    """Logarithms of an expert's unnormalised weight, and of that times its density at y."""

    gate_KN: Tensor
    joint_KN: Tensor


def means(theta_KQ: Tensor, x_N: Tensor) -> Tensor:
    """m_k(x), (K, N)."""
    return theta_KQ[:, SLOPE, None] * x_N + theta_KQ[:, INTERCEPT, None]


def log_gate(gate: Gate, theta_KQ: Tensor, x_N: Tensor) -> Tensor:
    """Logarithm of the unnormalised weights, (K, N)."""
    linear_KN = theta_KQ[:, LOG_MASS, None] + theta_KQ[:, TILT, None] * x_N
    if gate is Gate.SOFTMAX:
        return linear_KN
    return linear_KN + F.softplus(means(theta_KQ, x_N)).log()


def log_terms(gate: Gate, theta_KQ: Tensor, sample: Sample) -> LogTerms:
    gate_KN = log_gate(gate, theta_KQ, sample.x_N)
    log_sigma_K1 = theta_KQ[:, LOG_SIGMA, None]
    residual_KN = (sample.y_N - means(theta_KQ, sample.x_N)) * torch.exp(-log_sigma_K1)
    log_normal_KN = -log_sigma_K1 - 0.5 * residual_KN.square() - 0.5 * math.log(2 * math.pi)
    return LogTerms(gate_KN, gate_KN + log_normal_KN)


def log_density(gate: Gate, theta_KQ: Tensor, sample: Sample) -> Tensor:
    """log p(y | x), (N,)."""
    terms = log_terms(gate, theta_KQ, sample)
    return torch.logsumexp(terms.joint_KN, dim=0) - torch.logsumexp(terms.gate_KN, dim=0)


def draw(
    gate: Gate, theta_KQ: Tensor, n: int, x_range: tuple[float, float], generator: torch.Generator
) -> Sample:
    """``n`` pairs: x uniform on ``x_range``, an expert by its weight, y normal about its mean."""
    low, high = x_range
    x_N = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    weights_NK = torch.softmax(log_gate(gate, theta_KQ, x_N), dim=0).T
    chosen_1N = torch.multinomial(weights_NK, 1, generator=generator).T
    mean_N = means(theta_KQ, x_N).gather(0, chosen_1N)[0]
    sigma_N = theta_KQ[:, LOG_SIGMA].exp()[chosen_1N[0]]
    noise_N = torch.randn(n, generator=generator, dtype=torch.float64)
    return Sample(x_N, mean_N + sigma_N * noise_N)
