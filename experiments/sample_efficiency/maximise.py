"""Maximum likelihood in a box, by Newton's method with a trust region.

K experts, Q = 5 coordinates of an expert, P = K * Q, F coordinates that are free.

EM and gradient ascent crawl where more experts are fitted than there are: the likelihood is flat to
fourth order along a split. Newton's method with the exact Hessian takes some tens of steps there,
and its trust region leaves saddle points, such as two equal experts, by the direction that rises.
Coordinates at a bound whose gradient points outwards are held (Bertsekas 1982); steps are cut off
at the bounds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.sample_efficiency.likelihood import (
    Derivatives,
    derivatives,
    mean_log_likelihood,
)
from experiments.sample_efficiency.mixtures import COORDINATES, Gate, Sample
from experiments.sample_efficiency.settings import Start

MAX_STEPS = 300
TOLERANCE = 1e-8  # nats of the whole sample that a Newton step still promises
CURVATURE_TOLERANCE = 1e-7
FIRST_RADIUS, LARGEST_RADIUS = 0.3, 20.0  # in units of a coordinate's standard error at n = 1


class Maximum(NamedTuple):
    """Where a fit ended. Gradient and curvature are of the mean log-likelihood, free coordinates
    only, each in units of its standard error at n = 1."""

    theta_KQ: Tensor
    log_likelihood: float  # mean
    gradient: float  # largest
    curvature: float  # smallest eigenvalue of minus the Hessian
    promise: float  # nats of the whole sample that a Newton step still promises
    at_bound: tuple[str, ...]  # coordinates that a bound holds in some expert
    steps: int

    @property
    def converged(self) -> bool:
        """Stationary, and no direction rises."""
        return self.promise <= TOLERANCE and self.curvature >= -CURVATURE_TOLERANCE


class _Quadratic(NamedTuple):
    """The second-order model about a point, in its eigenvectors and scaled coordinates."""

    free_P: Tensor
    gradient_F: Tensor
    eigenvalue_F: Tensor  # of minus the Hessian, rising
    vectors_FF: Tensor

    def promise(self) -> float:
        """Gain of a Newton step, with rising directions taken as falling alike."""
        return float((self.gradient_F.square() / self.eigenvalue_F.abs().clamp_min(1e-9)).sum()) / 2


def maximise(gate: Gate, start: Start, sample: Sample) -> Maximum:
    """Climb from ``start`` to a local maximum of the likelihood in its region."""
    low_P, high_P = start.region.low_KQ.flatten(), start.region.high_KQ.flatten()
    theta_P = start.theta_KQ.flatten()
    shape = start.theta_KQ.shape
    here = derivatives(gate, start.theta_KQ, sample)
    scale_P = here.information_P.sqrt().clamp_min(1e-3)
    radius = FIRST_RADIUS
    steps = 0
    while True:
        held_P = _held(theta_P, here.gradient_P, low_P, high_P)
        model = _quadratic(here, ~held_P, scale_P)
        promise = model.promise() * len(sample.x_N)
        curvature = float(model.eigenvalue_F[0])
        done = promise <= TOLERANCE and curvature >= -CURVATURE_TOLERANCE
        if done or steps == MAX_STEPS:
            break
        steps += 1
        step_P = torch.zeros_like(theta_P)
        step_P[model.free_P] = _step(model, radius) / scale_P[model.free_P]
        moved_P = torch.clamp(theta_P + step_P, low_P, high_P)
        step_P = moved_P - theta_P
        length = float((step_P * scale_P).norm())
        promised = float(here.gradient_P @ step_P + step_P @ here.hessian_PP @ step_P / 2)
        gained = mean_log_likelihood(gate, moved_P.view(shape), sample) - float(here.value)
        ratio = gained / promised if promised > 0 else -1.0
        if ratio > 0.05:
            theta_P = moved_P
            here = derivatives(gate, theta_P.view(shape), sample)
        if ratio < 0.25:
            radius = 0.35 * length
        elif ratio > 0.7 and length > 0.8 * radius:
            radius = min(3 * radius, LARGEST_RADIUS)
    return Maximum(
        theta_KQ=theta_P.view(shape),
        log_likelihood=float(here.value),
        gradient=float(model.gradient_F.norm(p=math.inf)),
        curvature=curvature,
        promise=promise,
        at_bound=_names((held_P & (low_P < high_P)).view(shape)),
        steps=steps,
    )


def _names(bound_KQ: Tensor) -> tuple[str, ...]:
    return tuple(name for name, q in zip(COORDINATES, bound_KQ.any(dim=0), strict=True) if q)


def _held(theta_P: Tensor, gradient_P: Tensor, low_P: Tensor, high_P: Tensor) -> Tensor:
    """Coordinates that are fixed, or at a bound that the gradient would have them cross."""
    below_P = (theta_P <= low_P) & (gradient_P < 0)
    above_P = (theta_P >= high_P) & (gradient_P > 0)
    return below_P | above_P | (low_P == high_P)


def _quadratic(here: Derivatives, free_P: Tensor, scale_P: Tensor) -> _Quadratic:
    hessian_PP = here.hessian_PP / (scale_P[:, None] * scale_P)
    eigenvalue_F, vectors_FF = torch.linalg.eigh(-hessian_PP[free_P][:, free_P])
    gradient_F = vectors_FF.T @ (here.gradient_P / scale_P)[free_P]
    return _Quadratic(free_P, gradient_F, eigenvalue_F, vectors_FF)


def _step(model: _Quadratic, radius: float) -> Tensor:
    """The best step of the model within ``radius`` (More and Sorensen 1983), scaled, (F,)."""
    gradient_F, eigenvalue_F = model.gradient_F, model.eigenvalue_F
    lowest = float(eigenvalue_F[0])
    if lowest > 1e-14 and float((gradient_F / eigenvalue_F).norm()) <= radius:
        return model.vectors_FF @ (gradient_F / eigenvalue_F)
    below = max(0.0, -lowest) + 1e-15  # shifts whose step is too long, or not defined
    above = below + float(gradient_F.norm()) / radius + 1e-12  # and not too long
    while above > (1 + 1e-6) * below:
        shift = math.sqrt(below * above)
        length = float((gradient_F / (eigenvalue_F + shift)).norm())
        if length > radius:
            below = shift
        else:
            above = shift
        if 0.95 * radius <= length <= radius:
            break
    step_F = gradient_F / (eigenvalue_F + above)
    missing = radius**2 - float(step_F.square().sum())
    if lowest < 0 and missing > 0.2 * radius**2:  # no slope along the direction that rises
        step_F[0] += math.copysign(math.sqrt(missing), float(gradient_F[0]))
    return model.vectors_FF @ step_F
