"""The files of a study: results.json with all numbers, results.md with the tables, rates.png."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from experiments.sample_efficiency.figure import figure
from experiments.sample_efficiency.settings import SETTINGS
from experiments.sample_efficiency.slopes import DRAWS, LEVEL, Slope
from experiments.sample_efficiency.study import EXACT, FITS, OVER, Fit, Plan
from experiments.sample_efficiency.summary import SPANS, STATISTICS, Rate, rates

FILES = ("results.json", "results.md", "rates.png")


class Row(NamedTuple):
    """A row of a table; the slopes are the slowest that the theory allows."""

    title: str
    softmax: str
    competition: str


LOSSES = {
    (EXACT, "quadratic"): Row("2 to 2: Voronoi loss", "-1/2", "-1/2"),
    (EXACT, "total_variation"): Row("2 to 2: total variation", "-1/2", "-1/2"),
    (OVER, "quadratic"): Row("3 to 2: Voronoi loss", "-1/4", "-1/2"),
    (OVER, "total_variation"): Row("3 to 2: total variation", "-1/2", "-1/2"),
}
SHARED_CELL = {
    (OVER, "tilt"): Row("beta1", "-1/8", "-"),
    (OVER, "intercept"): Row("b", "-1/8", "-1/4"),
    (OVER, "slope"): Row("a", "-1/4", "-1/4"),
    (OVER, "sigma"): Row("sigma", "-1/4", "-1/4"),
    (OVER, "polynomial"): Row("loss D_2 of 2305.03288", "-1/2", "-1/2"),
}


def write(out: Path, plan: Plan, fits: list[Fit]) -> None:
    """Write ``FILES`` into ``out``. The same fits give the same bytes of JSON and Markdown."""
    found = list(rates(fits, plan))
    (out / "results.json").write_text(_json(plan, fits, found))
    (out / "results.md").write_text(markdown(plan, fits, found))
    (out / "rates.png").write_bytes(figure(plan, fits, found))


def markdown(plan: Plan, fits: list[Fit], found: list[Rate]) -> str:
    """The tables: slopes by gate, the level of the losses, how good the maxima are."""
    sizes = ", ".join(str(size) for size in plan.sizes)
    head = (
        f"n = {sizes}; {plan.repeats} repeats; seed {plan.seed}; masses within a factor of "
        f"{plan.mass_range:g}. Slopes with {LEVEL:.0%} bootstrap intervals ({DRAWS} draws).\n"
    )
    sections = [head]
    for setting in plan.settings:
        mine = [rate for rate in found if rate.setting == setting]
        sections.append(
            f"**{setting}**: {SETTINGS[setting].description}\n\n{_slopes(LOSSES, mine)}"
        )
        sections.append(f"What moves in a cell with two experts, {setting}:\n")
        sections.append(_slopes(SHARED_CELL, mine))
    sections.append(f"**The maxima**\n\n{_maxima(plan, fits)}")
    return "\n".join(sections)


def _slopes(titles: dict[tuple[str, str], Row], found: list[Rate]) -> str:
    """A row for each loss and statistic: slopes by gate over all sizes, then the upper half."""
    first = next(rate.first_size for rate in found if rate.span == "upper")
    gates = ["softmax", "competition", "difference"]
    header = ["", "of", "theory", *gates, *(f"{gate}, n >= {first}" for gate in gates)]
    rows = []
    for (fit, loss), row in titles.items():
        for statistic in STATISTICS:
            key = (fit, loss, statistic)
            spans = {r.span: r for r in found if (r.fit, r.loss, r.statistic) == key}
            slopes = [_cell(getattr(spans[span], gate)) for span in SPANS for gate in gates]
            rows.append([row.title, statistic, f"{row.softmax}, {row.competition}", *slopes])
    return _table(header, rows)


def _cell(slope: Slope | None) -> str:
    return "-" if slope is None else str(slope)


def _maxima(plan: Plan, fits: list[Fit]) -> str:
    header = ["setting", "gate", "fit", "fits", "stationary", "largest gradient"]
    header += [
        "least gain over the truth, nats",
        "mass at a bound",
        "other at a bound",
        "mean steps",
    ]
    rows = []
    for setting in plan.settings:
        for gate in dict.fromkeys(fit.gate for fit in fits):
            for kind in FITS:
                mine = [f for f in fits if (f.setting, f.gate, f.fit) == (setting, gate, kind)]
                rows.append([setting, gate, kind, *_quality(mine)])
    return _table(header, rows)


def _quality(fits: list[Fit]) -> list[str]:
    return [
        str(len(fits)),
        str(sum(fit.converged for fit in fits)),
        f"{max(fit.gradient for fit in fits):.0e}",
        f"{min(fit.gain for fit in fits):.2f}",
        f"{sum('mass' in fit.at_bound for fit in fits) / len(fits):.0%}",
        f"{sum(bool(set(fit.at_bound) - {'mass'}) for fit in fits) / len(fits):.0%}",
        f"{sum(fit.steps for fit in fits) / len(fits):.0f}",
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _json(plan: Plan, fits: list[Fit], found: list[Rate]) -> str:
    content = {
        "plan": asdict(plan),
        "settings": {name: asdict(SETTINGS[name]) for name in plan.settings},
        "rates": [_rate(rate) for rate in found],
        "fits": [fit._asdict() for fit in fits],
    }
    return json.dumps(content, indent=1) + "\n"


def _rate(rate: Rate) -> dict[str, object]:
    slopes = {
        name: None if slope is None else slope._asdict()
        for name, slope in (
            ("softmax", rate.softmax),
            ("competition", rate.competition),
            ("difference", rate.difference),
        )
    }
    return rate._asdict() | slopes
