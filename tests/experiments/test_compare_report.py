"""Means, spreads, intervals and what the report says of them."""

import math

import pytest

from experiments.compare.figure import figure
from experiments.compare.report import report, verdict
from experiments.compare.settings import Job
from experiments.compare.statistics import Difference, difference, spread
from experiments.compare.summary import LOSS, summarise
from llava_compete.report.drawing import to_png

ROUTERS = ("gatepro", "topk", "usmoe")
SEEDS = (0, 1, 2)


def record(router, seed, loss, match):
    figures = {"entropy": 0.9, "experts_per_token": 2.0, "agreement": 0.5 + seed / 100}
    figures |= {"agreement_shuffled": 0.5, "chance": 0.5}
    if router == "gatepro":
        figures["agreement"] = None
    return {
        "router": router,
        "seed": seed,
        "steps": 2,
        "curve": [[1, 4.0 + seed], [2, 3.0]],
        "scope": "token" if router == "usmoe" else None,
        "loss": loss,
        "loss_samples": 8,
        "scores": {"stamps_short": {"exact_match kind": match}},
        "routing": {"language_model": figures},
    }


@pytest.fixture
def results():
    """usmoe is worse by 1 +- 0.1; gatepro differs by less than its seeds do."""
    losses = {
        "topk": (2.0, 2.5, 3.0),
        "gatepro": (2.1, 2.3, 3.1),
        "usmoe": (3.1, 3.5, 3.9),
    }
    return {
        Job(router, seed): record(router, seed, losses[router][seed], 0.5 + seed / 10)
        for seed in SEEDS
        for router in ROUTERS
    }


@pytest.fixture
def cost():
    def one(factor, parameters):
        seconds = [2.0 * factor, 3.0 * factor, 2.5 * factor + 0.5]
        ratios = [a / b for a, b in zip(seconds, (2.0, 3.0, 2.5), strict=True)]
        memory = int(1000 * factor)
        return {
            "seconds": seconds,
            "ratios": ratios,
            "step_bytes": memory,
            "parameters": parameters,
        }

    routers = {"topk": one(1, 100), "gatepro": one(1.1, 100), "usmoe": one(1.5, 350)}
    return {
        "device": "cpu",
        "threads": 1,
        "batch_size": 4,
        "competing_share": 0.07,
        "routers": routers,
    }


def test_spread_is_mean_and_sample_deviation():
    values = [1.0, 4.0, 2.5, 0.5]
    mean = sum(values) / 4
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    assert spread(values) == pytest.approx((mean, sd, 4))
    assert spread([3.0]) == (3.0, None, 1)


def test_the_interval_is_students_on_paired_differences():
    values, reference = {0: 1.0, 1: 2.0, 2: 4.0}, {2: 1.0, 1: 1.5, 0: 0.5}
    pairs = [values[seed] - reference[seed] for seed in values]
    mean = sum(pairs) / 3
    error = math.sqrt(sum((pair - mean) ** 2 for pair in pairs) / 2) / math.sqrt(3)
    found = difference(values, reference)
    assert found == pytest.approx((mean, 4.303 * error, 3))
    assert not found.carried
    assert Difference(-1.0, 0.9, 3).carried
    assert not Difference(5.0, None, 1).carried
    same = difference({0: 0.5, 1: 0.25, 2: 0.75}, {0: 0.625, 1: 0.375, 2: 0.875})
    assert same == (-0.125, 0.0, 3)
    assert not same.carried


def test_many_seeds_have_an_interval_no_narrower_than_the_normal_one():
    values = {seed: float(seed % 2) for seed in range(50)}
    found = difference(values, dict.fromkeys(values, 0.0))
    assert found.half > 1.96 * math.sqrt(0.25 * 50 / 49) / math.sqrt(50)


def test_other_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match=r"seeds \[0, 1\] cannot be paired with \[0\]"):
        difference({0: 1.0, 1: 2.0}, {0: 1.0})


def test_the_summary_equals_a_loop_over_the_jobs(results, cost):
    rows = {row.router: row for row in summarise(results, cost)}
    assert next(iter(rows)) == "topk"
    for router, row in rows.items():
        losses = [results[Job(router, seed)]["loss"] for seed in SEEDS]
        own = [
            loss - results[Job("topk", seed)]["loss"]
            for seed, loss in zip(SEEDS, losses, strict=True)
        ]
        assert row.figures[LOSS].mean == pytest.approx(sum(losses) / 3)
        assert row.differences[LOSS].mean == pytest.approx(sum(own) / 3)
        assert row.figures["exact_match kind"].mean == pytest.approx(0.6)
    assert rows["usmoe"].cost.seconds == pytest.approx(1.5)
    assert rows["usmoe"].cost.seconds_high == pytest.approx(1.7)
    assert rows["usmoe"].cost.memory == pytest.approx(1.5)
    assert rows["usmoe"].cost.extra_parameters == 250
    assert "language_model/agreement" not in rows["gatepro"].figures


def test_only_differences_that_the_spread_carries_are_named(results, cost):
    lines = verdict(summarise(results, cost))
    assert "of 2 comparisons a line, 0.1 are expected" in lines[0]
    assert lines[1] == f"- {LOSS}: usmoe +1.000."
    assert lines[2] == "- exact_match kind: none."


def test_one_seed_carries_nothing(results, cost):
    rows = summarise({job: found for job, found in results.items() if job.seed == 0}, cost)
    assert verdict(rows) == [
        "One seed has no spread: nothing can be said about differences between routers."
    ]
    report(rows, results[Job("topk", 0)], cost)
    to_png(figure(rows))


def test_the_report_says_what_is_scored_otherwise_and_what_is_extra(results, cost):
    text = report(summarise(results, cost), results[Job("topk", 0)], cost)
    assert "| usmoe (t) |" in text
    assert "+1.000 [+0.752, +1.248] *" in text
    assert "Router parameters beyond topk's 100: usmoe +250." in text
    assert "| gatepro   | 1.10 (1.10 to 1.30)" in text
    assert " - (by loads alone 0.500)" in text


def test_the_figure_is_the_same_file_for_the_same_numbers(results, cost):
    rows = summarise(results, cost)
    assert to_png(figure(rows)) == to_png(figure(rows))
