"""The grid: settings x gates x sizes x repeats, each with an exact and an over-specified fit.

A cell of the grid has a seed of its own, so its numbers depend neither on the rest of the grid nor
on how many processes share it. Both fits of a cell see the same data.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.sample_efficiency.likelihood import mean_log_likelihood
from experiments.sample_efficiency.losses import parameter_errors, total_variation
from experiments.sample_efficiency.maximise import Maximum, maximise
from experiments.sample_efficiency.mixtures import Gate, Sample, draw
from experiments.sample_efficiency.settings import SETTINGS, Setting, exact_start, over_starts

EXACT, OVER = "exact", "over"
FITS = (EXACT, OVER)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run. ``mass_range``: an extra expert's mass stays within this factor of half a true
    one's."""

    settings: tuple[str, ...] = tuple(SETTINGS)
    sizes: tuple[int, ...]
    repeats: int
    mass_range: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ValueError(f"repeats={self.repeats} show no spread: give 2 or more")
        if len(self.sizes) < 2 or min(self.sizes) < 20:
            raise ValueError(f"sizes={self.sizes}: give two or more, none below 20")
        if not self.mass_range > 1:
            raise ValueError(f"mass_range={self.mass_range} must be above 1, a factor either way")


class Cell(NamedTuple):
    setting: str
    gate: Gate
    size: int
    repeat: int


class Fit(NamedTuple):
    """One maximum likelihood fit: its losses (``losses.py``), and how good a maximum it is."""

    setting: str
    gate: str
    fit: str
    size: int
    repeat: int
    quadratic: float
    polynomial: float
    total_variation: float
    tilt: float
    slope: float
    intercept: float
    sigma: float
    gain: float  # log-likelihood of the whole sample above that of the truth
    gradient: float
    promise: float
    converged: bool
    at_bound: tuple[str, ...]
    steps: int


def run(plan: Plan, workers: int) -> list[Fit]:
    """All fits of the plan, in its order. Prints a line for each gate and size."""
    began = time.monotonic()
    fits: list[Fit] = []
    batches = [
        (setting, gate, size) for setting in plan.settings for gate in Gate for size in plan.sizes
    ]
    cells = [Cell(*batch, repeat) for batch in batches for repeat in range(plan.repeats)]
    with _results(plan, cells, workers) as results:
        for number, (setting, gate, size) in enumerate(batches, start=1):
            for _ in range(plan.repeats):
                fits += next(results)
            elapsed = time.monotonic() - began
            where = f"{setting:6} {gate.value:11} n = {size:<7}"
            print(f"[{number}/{len(batches)}] {where} {elapsed:6.0f} s", flush=True)
    return fits


def fit_cell(plan: Plan, cell: Cell) -> list[Fit]:
    """Draw the data of a cell and fit them with as many experts as there are, and with one more."""
    setting = SETTINGS[cell.setting]
    truth_KQ = setting.truth(cell.gate)
    data_generator, start_generator = _generators(plan, cell)
    sample = draw(cell.gate, truth_KQ, cell.size, setting.x_range, data_generator)
    exact = exact_start(setting, cell.gate, cell.size, start_generator)
    over = over_starts(setting, cell.gate, cell.size, plan.mass_range, start_generator)
    maxima = {
        EXACT: maximise(cell.gate, exact, sample),
        OVER: max(
            (maximise(cell.gate, start, sample) for start in over),
            key=lambda maximum: maximum.log_likelihood,
        ),
    }
    return [_fit(cell, setting, truth_KQ, sample, fit, maxima[fit]) for fit in FITS]


def _fit(
    cell: Cell, setting: Setting, truth_KQ: Tensor, sample: Sample, fit: str, maximum: Maximum
) -> Fit:
    of_truth = mean_log_likelihood(cell.gate, truth_KQ, sample)
    errors = parameter_errors(maximum.theta_KQ, truth_KQ)
    return Fit(
        setting=cell.setting,
        gate=cell.gate.value,
        fit=fit,
        size=cell.size,
        repeat=cell.repeat,
        **errors._asdict(),
        total_variation=total_variation(cell.gate, maximum.theta_KQ, truth_KQ, setting.x_range),
        gain=(maximum.log_likelihood - of_truth) * cell.size,
        gradient=maximum.gradient,
        promise=maximum.promise,
        converged=maximum.converged,
        at_bound=maximum.at_bound,
        steps=maximum.steps,
    )


def _generators(plan: Plan, cell: Cell) -> list[torch.Generator]:
    """One for the data, one for the starts."""
    key = (list(SETTINGS).index(cell.setting), list(Gate).index(cell.gate), cell.size, cell.repeat)
    states = np.random.SeedSequence([plan.seed, *key]).generate_state(2, np.uint64)
    return [torch.Generator().manual_seed(int(state)) for state in states]


@contextmanager
def _results(plan: Plan, cells: list[Cell], workers: int) -> Iterator[Iterator[list[Fit]]]:
    """The fits of the cells in order. Every process has one thread, so that sums do not depend on
    how many there are."""
    plans = [plan] * len(cells)
    if workers > 1:
        with ProcessPoolExecutor(
            workers, get_context("spawn"), torch.set_num_threads, (1,)
        ) as pool:
            yield pool.map(fit_cell, plans, cells)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield map(fit_cell, plans, cells)
    finally:
        torch.set_num_threads(threads)
