"""How far a fitted mixture is from the true one: Voronoi losses, and total variation.

J fitted experts, K true ones, C = 4 compared coordinates (beta1, a, b, sigma), X and Y points of a
grid.

Masses are normalised to sum to 1 and tilts to mass-weighted mean 0, in both mixtures, since a
common shift of either leaves the softmax gate as it is. Each fitted expert j goes to the cell A_i
of the true expert i nearest to it; D_ij is its difference in (beta1, a, b, sigma), with D = 0 in
beta1 under the competition gate, which has none. pi are the masses, exp(beta0). Then

    quadratic =  sum over i                of |sum over j in A_i of pi_j - pi*_i|
               + sum over i with |A_i| = 1 of pi_j ||D_ij||
               + sum over i with |A_i| > 1 of (sum_j pi_j ||D_ij||^2 + ||sum_j pi_j D_ij||)

is the loss of mixtures that are strongly identifiable to the second order (in the form of Manole
and Ho, ICML 2022: squares in cells with several experts, with the first-order mean). It is of the
order of the error of the density if no second derivative of an expert can be made of first ones,
which is what gating by competition is to bring about.

    polynomial =  the same with, in cells of several experts,
                  sum_j pi_j (||(D_beta1, D_b)||^r + ||(D_a, D_sigma)||^(r/2))

with r = 4 for two experts in the cell and 6 for three, is D_2 of arXiv:2305.03288 for softmax
gates, which is at most of the order of the density's error there. So b and beta1 may move as slowly
as n^-1/8 and a, sigma as n^-1/4, and ``quadratic`` may fall as slowly as n^-1/4. That paper has
the variance in place of sigma and takes the infimum over shifts of beta; neither changes a rate.
With one expert a cell both are its D_1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from experiments.sample_efficiency.mixtures import (
    INTERCEPT,
    LOG_MASS,
    LOG_SIGMA,
    SLOPE,
    TILT,
    Gate,
    Sample,
    log_density,
    means,
)

EXPONENTS = {2: 4, 3: 6}  # r-bar of arXiv:2305.03288 by the number of experts in a cell
X_POINTS, Y_POINTS = 64, 512


class ParameterErrors(NamedTuple):
    """Voronoi losses; and the mass-weighted mean |D| by coordinate in cells of several experts."""

    quadratic: float
    polynomial: float
    tilt: float
    slope: float
    intercept: float
    sigma: float


class _Measure(NamedTuple):
    mass_K: Tensor
    points_KC: Tensor


def parameter_errors(fitted_JQ: Tensor, true_KQ: Tensor) -> ParameterErrors:
    """Voronoi losses of a fit; the four coordinates are 0 if every cell has one expert at most."""
    fitted, true = _measure(fitted_JQ), _measure(true_KQ)
    cell_J = torch.cdist(fitted.points_KC, true.points_KC).argmin(dim=1)
    quadratic = polynomial = 0.0
    moved_C = torch.zeros(4, dtype=torch.float64)
    shared_mass = 0.0
    for i in range(len(true_KQ)):
        inside_J = cell_J == i
        pi_J1 = fitted.mass_K[inside_J, None]
        d_JC = fitted.points_KC[inside_J] - true.points_KC[i]
        mismatch = float((pi_J1.sum() - true.mass_K[i]).abs())
        quadratic += mismatch
        polynomial += mismatch
        if len(d_JC) <= 1:
            first_power = float((pi_J1[:, 0] * d_JC.norm(dim=1)).sum())
            quadratic += first_power
            polynomial += first_power
            continue
        r = EXPONENTS[len(d_JC)]
        quadratic += float((pi_J1 * d_JC.square()).sum() + (pi_J1 * d_JC).sum(dim=0).norm())
        by_order_J = d_JC[:, [0, 2]].norm(dim=1) ** r + d_JC[:, [1, 3]].norm(dim=1) ** (r / 2)
        polynomial += float((pi_J1[:, 0] * by_order_J).sum())
        moved_C += (pi_J1 * d_JC.abs()).sum(dim=0)
        shared_mass += float(pi_J1.sum())
    moved_C /= max(shared_mass, 1e-300)
    return ParameterErrors(quadratic, polynomial, *moved_C.tolist())


def total_variation(
    gate: Gate, fitted_JQ: Tensor, true_KQ: Tensor, x_range: tuple[float, float]
) -> float:
    """Half the integral of |fitted - true density| over y, mean over x: midpoint rule on a grid."""
    low, high = x_range
    x_X = low + (high - low) * (torch.arange(X_POINTS, dtype=torch.float64) + 0.5) / X_POINTS
    both_EQ = torch.cat([fitted_JQ, true_KQ])
    reach_E1 = 8 * both_EQ[:, LOG_SIGMA, None].exp()
    lowest_X = (means(both_EQ, x_X) - reach_E1).amin(dim=0)
    highest_X = (means(both_EQ, x_X) + reach_E1).amax(dim=0)
    cell_X1 = (highest_X - lowest_X)[:, None] / Y_POINTS
    y_XY = lowest_X[:, None] + cell_X1 * (torch.arange(Y_POINTS, dtype=torch.float64) + 0.5)
    grid = Sample(x_X[:, None].expand_as(y_XY).flatten(), y_XY.flatten())
    fitted_XY = log_density(gate, fitted_JQ, grid).exp().view_as(y_XY)
    true_XY = log_density(gate, true_KQ, grid).exp().view_as(y_XY)
    return float(((fitted_XY - true_XY).abs() * cell_X1).sum()) / (2 * X_POINTS)


def _measure(theta_KQ: Tensor) -> _Measure:
    mass_K = torch.softmax(theta_KQ[:, LOG_MASS], dim=0)
    points_KC = theta_KQ[:, [TILT, SLOPE, INTERCEPT, LOG_SIGMA]].clone()
    points_KC[:, 0] -= (mass_K * points_KC[:, 0]).sum()
    points_KC[:, 3] = points_KC[:, 3].exp()
    return _Measure(mass_K, points_KC)
