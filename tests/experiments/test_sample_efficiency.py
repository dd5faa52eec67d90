"""The study of rates: model, likelihood, maximum, losses, slopes, command."""

import json
import math

import numpy as np
import pytest
import torch

from experiments.__main__ import main
from experiments.sample_efficiency import command
from experiments.sample_efficiency.likelihood import CHUNK, derivatives, mean_log_likelihood
from experiments.sample_efficiency.losses import parameter_errors, total_variation
from experiments.sample_efficiency.maximise import maximise
from experiments.sample_efficiency.mixtures import (
    INTERCEPT,
    LOG_MASS,
    LOG_SIGMA,
    SLOPE,
    TILT,
    Gate,
    Sample,
    draw,
    log_density,
)
from experiments.sample_efficiency.settings import SETTINGS, Start, exact_start, over_starts
from experiments.sample_efficiency.slopes import log_log_slope, resampled_slope
from experiments.sample_efficiency.study import Cell, Plan, fit_cell, run

# log mass, tilt, slope, intercept, log sigma
THREE = torch.tensor(
    [
        [0.0, 1.5, 2.0, 0.3, 0.1],
        [-0.4, -1.0, -1.5, 0.8, -0.3],
        [0.2, 0.5, 0.4, -1.2, 0.4],
    ],
    dtype=torch.float64,
)
gates = pytest.mark.parametrize("gate", list(Gate))
settings = pytest.mark.parametrize("setting", list(SETTINGS.values()), ids=list(SETTINGS))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def density_by_hand(gate, theta, x, y):
    weights, normals = [], []
    for log_mass, tilt, slope, intercept, log_sigma in theta.tolist():
        mean, sigma = slope * x + intercept, math.exp(log_sigma)
        affinity = math.log(1 + math.exp(mean)) if gate is Gate.COMPETITION else 1.0
        weights.append(math.exp(log_mass + tilt * x) * affinity)
        normals.append(
            math.exp(-((y - mean) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        )
    return sum(w * p for w, p in zip(weights, normals, strict=True)) / sum(weights)


@gates
def test_log_density_equals_the_loop(gate):
    sample = draw(gate, THREE, 50, (-2.0, 2.0), generator())
    found = log_density(gate, THREE, sample)
    for i in range(50):
        expected = density_by_hand(gate, THREE, float(sample.x_N[i]), float(sample.y_N[i]))
        assert math.isclose(float(found[i]), math.log(expected), rel_tol=1e-10, abs_tol=1e-12)


@gates
def test_a_sample_has_the_moments_of_the_model(gate):
    n = 200_000
    sample = draw(gate, THREE, n, (0.5, 0.5001), generator())
    x = 0.5
    weights, mean, square = [], 0.0, 0.0
    for log_mass, tilt, slope, intercept, log_sigma in THREE.tolist():
        m = slope * x + intercept
        affinity = math.log(1 + math.exp(m)) if gate is Gate.COMPETITION else 1.0
        weights.append(math.exp(log_mass + tilt * x) * affinity)
        mean += weights[-1] * m
        square += weights[-1] * (m**2 + math.exp(2 * log_sigma))
    mean, square = mean / sum(weights), square / sum(weights)
    error = math.sqrt((square - mean**2) / n)
    assert abs(float(sample.y_N.mean()) - mean) < 4 * error
    assert abs(float(sample.y_N.square().mean()) / square - 1) < 0.02
    assert 0.5 <= float(sample.x_N.min()) <= float(sample.x_N.max()) <= 0.5001


@gates
def test_derivatives_are_those_of_automatic_differentiation(gate):
    sample = draw(gate, THREE, CHUNK + 37, (-2.0, 2.0), generator())

    def value(theta_P):
        return log_density(gate, theta_P.view(3, 5), sample).mean()

    found = derivatives(gate, THREE, sample)
    flat = THREE.flatten()
    torch.testing.assert_close(found.value, value(flat), rtol=1e-12, atol=0)
    assert math.isclose(mean_log_likelihood(gate, THREE, sample), float(found.value))
    gradient = torch.func.grad(value)(flat)
    torch.testing.assert_close(found.gradient_P, gradient, rtol=0, atol=1e-12)
    hessian = torch.func.hessian(value)(flat)
    torch.testing.assert_close(found.hessian_PP, hessian, rtol=0, atol=1e-11)


def test_the_information_is_the_mean_squared_score():
    sample = draw(Gate.COMPETITION, THREE, 30, (-2.0, 2.0), generator())
    squares = torch.zeros(15, dtype=torch.float64)
    for i in range(30):
        one = Sample(sample.x_N[i : i + 1], sample.y_N[i : i + 1])
        score = torch.func.grad(
            lambda theta_P, one=one: log_density(Gate.COMPETITION, theta_P.view(3, 5), one).sum()
        )(THREE.flatten())
        squares += score.square() / 30
    found = derivatives(Gate.COMPETITION, THREE, sample).information_P
    torch.testing.assert_close(found, squares, rtol=1e-9, atol=1e-12)


def copied(truth_KQ, share=None):
    """The truth with its first expert twice, whose masses are ``share`` and the rest of one."""
    theta_KQ = truth_KQ[[0, 0, 1]].clone()
    if share is not None:
        theta_KQ[0, LOG_MASS] += math.log(share)
        theta_KQ[1, LOG_MASS] += math.log(1 - share)
    return theta_KQ


@gates
def test_a_copy_that_shares_the_mass_leaves_the_density_and_a_full_copy_does_not(gate):
    setting = SETTINGS["noisy"]
    truth = setting.truth(gate)
    assert total_variation(gate, copied(truth, share=0.3), truth, setting.x_range) < 1e-14
    assert total_variation(gate, copied(truth), truth, setting.x_range) > 1e-3


@gates
@settings
def test_an_exact_fit_is_a_stationary_maximum_above_the_truth(gate, setting):
    truth = setting.truth(gate)
    sample = draw(gate, truth, 2000, setting.x_range, generator())
    start = exact_start(setting, gate, 2000, generator(1))
    maximum = maximise(gate, start, sample)
    assert_local_maximum(gate, start, sample, maximum)
    assert maximum.log_likelihood >= mean_log_likelihood(gate, truth, sample)
    assert maximum.at_bound == ()
    if gate is Gate.COMPETITION:  # its gate has nothing to fit
        assert (maximum.theta_KQ[:, [LOG_MASS, TILT]] == 0).all()


@gates
@settings
def test_an_over_specified_fit_is_a_stationary_maximum_above_the_truth(gate, setting):
    truth = setting.truth(gate)
    sample = draw(gate, truth, 2000, setting.x_range, generator())
    for start in over_starts(setting, gate, 2000, 2.0, generator(1)):
        maximum = maximise(gate, start, sample)
        assert_local_maximum(gate, start, sample, maximum)
        assert maximum.log_likelihood >= mean_log_likelihood(gate, truth, sample)


def assert_local_maximum(gate, start, sample, maximum):
    """By automatic differentiation, and by small steps inside the region."""
    low, high = start.region
    assert maximum.converged
    assert (maximum.theta_KQ >= low).all()
    assert (maximum.theta_KQ <= high).all()
    flat = maximum.theta_KQ.flatten().clone()
    gradient = torch.func.grad(
        lambda theta_P: log_density(gate, theta_P.view(low.shape), sample).mean()
    )(flat).view(low.shape)
    inside = (maximum.theta_KQ > low) & (maximum.theta_KQ < high)
    assert gradient[inside].abs().max() < 1e-4
    assert (gradient[(maximum.theta_KQ == low) & (low < high)] <= 0).all()
    assert (gradient[(maximum.theta_KQ == high) & (low < high)] >= 0).all()
    noise = generator(2)
    for _ in range(20):
        near = maximum.theta_KQ + 0.01 * torch.randn(low.shape, generator=noise).double()
        near = near.clamp(low, high)
        assert mean_log_likelihood(gate, near, sample) <= maximum.log_likelihood + 1e-12


@gates
def test_two_equal_experts_are_a_saddle_that_is_left(gate):
    setting = SETTINGS["noisy"]
    truth = setting.truth(gate)
    sample = draw(gate, truth, 5000, setting.x_range, generator(3))
    exact = maximise(gate, exact_start(setting, gate, 5000, generator()), sample)
    start = over_starts(setting, gate, 5000, 2.0, generator())[0]
    twice = copied(exact.theta_KQ, share=0.5)
    twice[:, [LOG_MASS, TILT]] -= twice[-1, [LOG_MASS, TILT]].clone()
    maximum = maximise(gate, Start(twice, start.region), sample)
    assert maximum.converged
    assert (maximum.log_likelihood - exact.log_likelihood) * 5000 > 0.1


@gates
@settings
def test_starts_stand_at_the_truth_in_law_and_inside_their_region(gate, setting):
    truth = setting.truth(gate)
    exact = exact_start(setting, gate, 1000, generator())
    assert total_variation(gate, exact.theta_KQ, truth, setting.x_range) < 0.05
    over = over_starts(setting, gate, 1000, 2.0, generator())
    assert len(over) == 2
    for start in over:
        assert total_variation(gate, start.theta_KQ, truth, setting.x_range) < 0.1
    for start in (exact, *over):
        assert (start.theta_KQ >= start.region.low_KQ).all()
        assert (start.theta_KQ <= start.region.high_KQ).all()
        assert (start.region.low_KQ[-1, :2] == start.region.high_KQ[-1, :2]).all()


def losses_by_hand(fitted, true, exponents):
    """Both Voronoi losses with plain loops; ``exponents`` by the number of experts in a cell."""

    def normalised(theta):
        masses = [math.exp(row[LOG_MASS]) for row in theta.tolist()]
        masses = [mass / sum(masses) for mass in masses]
        shift = sum(m * row[TILT] for m, row in zip(masses, theta.tolist(), strict=True))
        return [
            (m, (row[TILT] - shift, row[SLOPE], row[INTERCEPT], math.exp(row[LOG_SIGMA])))
            for m, row in zip(masses, theta.tolist(), strict=True)
        ]

    cells = {i: [] for i in range(len(true))}
    target = normalised(true)
    for mass, point in normalised(fitted):
        nearest = min(cells, key=lambda i: math.dist(point, target[i][1]))
        cells[nearest].append(
            (mass, [p - t for p, t in zip(point, target[nearest][1], strict=True)])
        )
    quadratic = polynomial = 0.0
    for i, members in cells.items():
        mismatch = abs(sum(mass for mass, _ in members) - target[i][0])
        quadratic += mismatch
        polynomial += mismatch
        if len(members) == 1:
            mass, d = members[0]
            quadratic += mass * math.hypot(*d)
            polynomial += mass * math.hypot(*d)
        elif members:
            r = exponents[len(members)]
            quadratic += sum(mass * sum(c * c for c in d) for mass, d in members)
            quadratic += math.hypot(*(sum(mass * d[c] for mass, d in members) for c in range(4)))
            for mass, d in members:
                polynomial += mass * math.hypot(d[0], d[2]) ** r
                polynomial += mass * math.hypot(d[1], d[3]) ** (r / 2)
    return quadratic, polynomial


@gates
@pytest.mark.parametrize("rows", [[0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0]])
def test_voronoi_losses_equal_the_loop(gate, rows):
    truth = SETTINGS["noisy"].truth(gate)
    fitted = truth[rows] + 0.3 * torch.randn(len(rows), 5, generator=generator()).double()
    found = parameter_errors(fitted, truth)
    quadratic, polynomial = losses_by_hand(fitted, truth, {2: 4, 3: 6})
    assert math.isclose(found.quadratic, quadratic, rel_tol=1e-10)
    assert math.isclose(found.polynomial, polynomial, rel_tol=1e-10)
    assert (found.intercept == 0) == (len(rows) == 2)


@gates
@settings
def test_voronoi_losses_are_zero_at_the_truth_whatever_order_shift_or_split(gate, setting):
    truth = setting.truth(gate)
    split = copied(truth, share=0.3)
    shifted = truth + torch.tensor([0.7, -1.3, 0, 0, 0], dtype=torch.float64)
    for same in (truth, truth.flip(0), shifted, split, split.flip(0)):
        assert max(parameter_errors(same, truth)) < 1e-12


def test_voronoi_losses_do_not_depend_on_the_order_of_the_experts():
    truth = SETTINGS["noisy"].truth(Gate.SOFTMAX)
    fitted = truth[[0, 1, 1]] + 0.2 * torch.randn(3, 5, generator=generator()).double()
    expected = parameter_errors(fitted, truth)
    for order in ([1, 2, 0], [2, 1, 0]):
        assert np.allclose(parameter_errors(fitted[order], truth), expected, rtol=1e-12)


def test_total_variation_of_two_normals_is_the_known_one():
    one = torch.zeros(1, 5, dtype=torch.float64)
    other = one.clone()
    other[0, INTERCEPT] = 1.0
    expected = math.erf(0.5 / math.sqrt(2))  # 2 Phi(distance / 2) - 1
    found = total_variation(Gate.SOFTMAX, one, other, (-1.0, 1.0))
    assert math.isclose(found, expected, rel_tol=1e-4)


def test_the_slope_of_a_power_law_is_its_exponent():
    sizes = np.array([100.0, 1000.0, 5000.0, 20_000.0])
    losses = 3 * sizes**-0.25
    assert math.isclose(float(log_log_slope(sizes, losses)), -0.25)
    slope = resampled_slope(sizes, np.repeat(losses[:, None], 5, axis=1), "mean", seed=0)
    assert np.allclose(slope.interval(), -0.25)
    assert np.allclose(slope.minus(slope), 0)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_interval_covers_the_exponent_about_as_often_as_it_says(statistic):
    sizes = np.array([100.0, 300.0, 1000.0, 3000.0])
    noise = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        losses = sizes[:, None] ** -0.5 * np.exp(0.5 * noise.standard_normal((4, 30)))
        interval = resampled_slope(sizes, losses, statistic, seed=trial).interval()
        covered += interval.low <= -0.5 <= interval.high
    assert covered >= 85


def test_slopes_refuse_what_has_none():
    with pytest.raises(ValueError, match="two or more"):
        log_log_slope(np.array([100.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="no logarithm"):
        log_log_slope(np.array([100.0, 200.0]), np.array([1.0, 0.0]))


TINY = Plan(sizes=(100, 200), repeats=2)


def test_a_cell_depends_on_the_seed_and_on_nothing_else_of_the_plan():
    cell = Cell("sharp", Gate.COMPETITION, 100, 1)
    expected = fit_cell(TINY, cell)
    assert fit_cell(Plan(sizes=(50, 100, 400), repeats=7), cell) == expected
    assert fit_cell(Plan(sizes=(100, 200), repeats=2, seed=1), cell) != expected


@pytest.mark.slow
def test_fits_do_not_depend_on_the_number_of_processes():
    plan = Plan(settings=("noisy",), sizes=(100, 200), repeats=2)
    assert run(plan, workers=2) == run(plan, workers=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 1}, "2 or more"),
        ({"sizes": (100,)}, "two or more"),
        ({"sizes": (5, 100)}, "none below 20"),
        ({"mass_range": 1.0}, "above 1"),
    ],
)
def test_a_plan_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"sizes": (100, 200), "repeats": 2, **wrong})


def test_the_command_writes_numbers_tables_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK_SIZES", TINY.sizes)
    monkeypatch.setattr(command, "QUICK_REPEATS", TINY.repeats)
    out = tmp_path / "new" / "folder"
    main(["sample_efficiency", "--quick", "--workers", "1", "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    assert len(results["fits"]) == 2 * 2 * 2 * 2 * 2  # settings, gates, fits, sizes, repeats
    assert all(fit["converged"] and fit["gain"] >= 0 for fit in results["fits"])
    assert {rate["loss"] for rate in results["rates"]} >= {"quadratic", "total_variation"}
    assert "competition" in (out / "results.md").read_text()
    assert (out / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert "[8/8]" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--workers", "0"], ["--mass_range", "0.5"], []])
def test_the_command_refuses_wrong_options(wrong, tmp_path, capsys):
    out = ["--out", str(tmp_path)] if wrong else []
    with pytest.raises(SystemExit):
        main(["sample_efficiency", *out, *wrong])
    assert "error" in capsys.readouterr().err
