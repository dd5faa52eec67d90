"""Jobs and costs -> a row for each router: plain numbers, ready for JSON, table and figure."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from eval.store import Record
from experiments.compare.settings import REFERENCE, Job
from experiments.compare.statistics import Difference, Spread, difference, spread

LOSS = "held-out loss"
FIRST = "first loss"  # of the first training step, before anything was learnt


class Cost(NamedTuple):
    """Of a training step, as ratios to the reference's."""

    seconds: float  # median over the rounds
    seconds_low: float
    seconds_high: float
    memory: float
    parameters: int  # of all routers
    extra_parameters: int  # above the reference's


class Row(NamedTuple):
    """All that is said of a router."""

    router: str
    by_token: bool  # scored in another form than it was trained in
    figures: dict[str, Spread]  # the held-out loss, scores, and PART/FIGURE of the routing
    differences: dict[str, Difference]  # to the reference: of the loss and the scores
    by_seed: dict[str, dict[int, float]]  # what both are made of
    cost: Cost


def summarise(results: Mapping[Job, Record], cost: Record) -> list[Row]:
    """Rows in the order of the routers, the reference first."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for job, record in results.items():
        of_router = values.setdefault(job.router, {})
        for name, value in _values(record):
            of_router.setdefault(name, {})[job.seed] = value
    order = sorted(values, key=lambda router: router != REFERENCE)
    return [_row(router, values, results, cost) for router in order]


def qualities(row: Row) -> list[str]:
    """Names of what a router is judged by: the loss, then the scores."""
    return list(row.differences)


def _row(
    router: str,
    values: Mapping[str, Mapping[str, dict[int, float]]],
    results: Mapping[Job, Record],
    cost: Record,
) -> Row:
    own, reference = values[router], values[REFERENCE]
    record = next(record for job, record in results.items() if job.router == router)
    judged = [LOSS, *_scores(record)]
    return Row(
        router=router,
        by_token=record["scope"] is not None,
        figures={name: spread(list(by_seed.values())) for name, by_seed in own.items()},
        differences={name: difference(own[name], reference[name]) for name in judged},
        by_seed=dict(own),
        cost=_cost(cost["routers"][router], cost["routers"][REFERENCE]),
    )


def _cost(own: Mapping[str, Any], reference: Mapping[str, Any]) -> Cost:
    return Cost(
        seconds=median(own["ratios"]),
        seconds_low=min(own["ratios"]),
        seconds_high=max(own["ratios"]),
        memory=own["step_bytes"] / reference["step_bytes"],
        parameters=own["parameters"],
        extra_parameters=own["parameters"] - reference["parameters"],
    )


def _values(record: Record) -> Iterator[tuple[str, float]]:
    yield LOSS, record["loss"]
    yield FIRST, record["curve"][0][1]
    yield from _scores(record).items()
    for part, figures in record["routing"].items():
        for name, value in figures.items():
            if value is not None:
                yield f"{part}/{name}", value


def _scores(record: Record) -> dict[str, float]:
    several = len(record["scores"]) > 1
    return {
        f"{task} {metric}" if several else metric: value
        for task, metrics in record["scores"].items()
        for metric, value in metrics.items()
    }
