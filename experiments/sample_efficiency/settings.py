"""The true models, where a fit may go, and where it starts.

K experts, Q = 5 coordinates of an expert (``mixtures.py``).

Two truths, after simulations that the authors of the theory keep for their gates. "sharp" is the
first of them with x measured from where the softmax gate is even, so that both masses are 1/2.
"noisy" has a, sigma, beta1 and the range of x of the second; b = 0 and beta0 = 0 are ours. It was
chosen because the competition gate identifies a split well there (docs/results.md).

The theorems are about the maximum likelihood estimator on a compact set with masses bounded away
from 0, so the fits have bounds: a box about the truth. The bound on the masses matters: most fits
with one expert too many end at it, since a far expert of little mass often serves the likelihood
better than an even split.
"""

import math
from dataclasses import dataclass
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
)

EXACT_MASS_RANGE = 10.0  # factor either way
SIGMA_RANGE = 4.0  # factor either way
SPLIT = 0.7  # half the distance of a split at n = 1, in units of sigma
SPLIT_DECAY = 1 / 8  # a split's distance falls as n^-1/8 under the softmax gate (arXiv:2305.03288)


class Region(NamedTuple):
    """A box of parameters; a coordinate whose two ends are equal is fixed."""

    low_KQ: Tensor
    high_KQ: Tensor


class Start(NamedTuple):
    theta_KQ: Tensor
    region: Region


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A truth of two experts for both gates, and how far a fit may stray from it."""

    x_range: tuple[float, float]
    tilt: tuple[float, float]  # softmax gate only
    slope: tuple[float, float]
    intercept: tuple[float, float]
    sigma: tuple[float, float]
    tilt_radius: float
    mean_radius: float  # of slope and of intercept
    description: str

    def truth(self, gate: Gate) -> Tensor:
        """(2, Q), float64, both masses 1."""
        theta_KQ = torch.zeros(2, 5, dtype=torch.float64)
        if gate is Gate.SOFTMAX:
            theta_KQ[:, TILT] = torch.tensor(self.tilt, dtype=torch.float64)
        theta_KQ[:, SLOPE] = torch.tensor(self.slope, dtype=torch.float64)
        theta_KQ[:, INTERCEPT] = torch.tensor(self.intercept, dtype=torch.float64)
        theta_KQ[:, LOG_SIGMA] = torch.tensor(self.sigma, dtype=torch.float64).log()
        return theta_KQ


SETTINGS = {
    "noisy": Setting(
        x_range=(-2.0, 2.0),
        tilt=(4.0, -4.0),
        slope=(8.0, -8.0),
        intercept=(0.0, 0.0),
        sigma=(4.0, 3.0),
        tilt_radius=8.0,
        mean_radius=8.0,
        description="noise of the order of the responses: x ~ U(-2, 2), a = (8, -8), b = (0, 0), "
        "sigma = (4, 3), beta1 = (4, -4)",
    ),
    "sharp": Setting(
        x_range=(-0.32, 0.68),
        tilt=(25.0, 0.0),
        slope=(-20.0, 20.0),
        intercept=(8.6, 1.4),
        sigma=(0.3, 0.4),
        tilt_radius=25.0,
        mean_radius=20.0,
        description="little noise: x ~ U(-0.32, 0.68), a = (-20, 20), b = (8.6, 1.4), "
        "sigma = (0.3, 0.4), beta1 = (25, 0)",
    ),
}


def exact_start(setting: Setting, gate: Gate, n: int, generator: torch.Generator) -> Start:
    """As many experts as the truth has, near it; the competition gate has no masses to fit."""
    center_KQ = _gauged(setting.truth(gate))
    mass_range = EXACT_MASS_RANGE if gate is Gate.SOFTMAX else 1.0
    region = _region(setting, gate, center_KQ, mass_range)
    return Start(_jitter(center_KQ, region, n, generator), region)


def over_starts(
    setting: Setting, gate: Gate, n: int, mass_range: float, generator: torch.Generator
) -> list[Start]:
    """One expert too many: for each true expert a start in which two fitted ones share its place.

    The two have half its mass each, stand to either side of its line and have as much less variance
    as leaves that of the two together unchanged. The one that is not split comes last.
    """
    truth_KQ = setting.truth(gate)
    starts = []
    for split in range(2):
        theta_KQ = truth_KQ[[split, split, 1 - split]]
        theta_KQ[:2, LOG_MASS] -= math.log(2)
        center_KQ = _gauged(theta_KQ)
        region = _region(setting, gate, center_KQ, mass_range)
        sigma = setting.sigma[split]
        apart = SPLIT * sigma * n**-SPLIT_DECAY
        parted_KQ = center_KQ.clone()
        parted_KQ[0, INTERCEPT] += apart
        parted_KQ[1, INTERCEPT] -= apart
        parted_KQ[:2, LOG_SIGMA] = 0.5 * math.log(sigma**2 - apart**2)
        starts.append(Start(_jitter(parted_KQ, region, n, generator), region))
    return starts


def _gauged(theta_KQ: Tensor) -> Tensor:
    """The same density with mass 1 and tilt 0 of the last expert: a common shift does nothing."""
    theta_KQ = theta_KQ.clone()
    theta_KQ[:, [LOG_MASS, TILT]] -= theta_KQ[-1, [LOG_MASS, TILT]].clone()
    return theta_KQ


def _region(setting: Setting, gate: Gate, center_KQ: Tensor, mass_range: float) -> Region:
    radius_KQ = torch.empty_like(center_KQ)
    radius_KQ[:, LOG_MASS] = math.log(mass_range)
    radius_KQ[:, TILT] = setting.tilt_radius if gate is Gate.SOFTMAX else 0.0
    radius_KQ[:, SLOPE] = setting.mean_radius
    radius_KQ[:, INTERCEPT] = setting.mean_radius
    radius_KQ[:, LOG_SIGMA] = math.log(SIGMA_RANGE)
    radius_KQ[-1, [LOG_MASS, TILT]] = 0.0
    return Region(center_KQ - radius_KQ, center_KQ + radius_KQ)


def _jitter(theta_KQ: Tensor, region: Region, n: int, generator: torch.Generator) -> Tensor:
    """Noise of the size that the authors' simulations start with: 0.005 n^-0.083."""
    noise_KQ = torch.randn(theta_KQ.shape, generator=generator, dtype=torch.float64)
    moved_KQ = theta_KQ + 0.005 * n**-0.083 * noise_KQ
    return moved_KQ.clamp(region.low_KQ, region.high_KQ)
