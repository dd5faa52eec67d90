"""The table of a run, in Markdown."""

from collections.abc import Iterator

from eval.inference import describe, mark
from eval.plan import RIGHT, SHUFFLED
from eval.store import Record

HEAD = ("task", "metric", "n", "score", "shuffled pictures", "right - shuffled", "chance")
LEGEND = (
    "Shares are in percent, +- one standard error; points are as the benchmark counts them; "
    "answer_loss is in nats a token, lower is better. Shuffled pictures: the same questions, each "
    "with another sample's picture; right - shuffled is paired by sample, with its size in its own "
    "standard errors (se) in brackets. Chance: the best a model can do that never "
    "looks."
)


def table(results: Record) -> str:
    """Every metric of every task, the headline first and also by group, and what to beware of."""
    rows = [row for name, task in results["tasks"].items() for row in _rows(name, task, results)]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = [_line(HEAD, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in rows]
    notes = [f"- Not as it was saved: {text}." for text in describe(results.get("changes", {}))]
    notes += [note for name, task in results["tasks"].items() for note in _notes(name, task)]
    return "\n".join([*lines, "", LEGEND, *notes])


def _rows(name: str, task: Record, results: Record) -> Iterator[tuple[str, ...]]:
    title = name + _mark(task, results["limit"]) + mark(results.get("changes", {}))
    conditions = task["conditions"]
    if RIGHT not in conditions:
        yield (title, task["headline"], "0", "-", "-", "-", "-")
        return
    if "unscored" in task:
        yield (title, task["headline"], str(task["n"]), "none", "-", "-", "-")
        return
    right = conditions[RIGHT]["metrics"]
    shuffled = conditions[SHUFFLED]["metrics"] if SHUFFLED in conditions else {}
    for metric in sorted(right, key=lambda m: m != task["headline"]):
        control = shuffled.get(metric, {"groups": {}})
        change = task["differences"].get(metric, {"groups": {}})
        yield _row(title, metric, right[metric], control, change)
        if metric != task["headline"]:
            continue
        for group, value in right[metric]["groups"].items():
            parts = control["groups"].get(group, {}), change["groups"].get(group, {})
            yield _row(title, f"{metric}, {group}", value, *parts)


def _row(
    title: str, metric: str, value: Record, control: Record, change: Record
) -> tuple[str, ...]:
    unit = value["unit"]
    chance = "-" if value["chance"] is None else _number(value["chance"], unit)
    return (
        title,
        metric,
        str(value["n"]),
        estimate(value, unit),
        estimate(control, unit) if "value" in control else "-",
        _change(change, unit) if "value" in change else "-",
        chance,
    )


def estimate(value: Record, unit: str) -> str:
    """``57.1 +- 1.2`` in the unit; where a metric has no standard error, the number alone."""
    text = _number(value["value"], unit)
    return text if value["stderr"] is None else f"{text} +- {_number(value['stderr'], unit)}"


def _change(change: Record, unit: str) -> str:
    text = _number(change["value"], unit, sign="+")
    errors = change["in_stderrs"]
    return text if errors is None else f"{text} ({errors:+.1f} se)"


def _number(value: float, unit: str, sign: str = "") -> str:
    if unit == "share":
        return f"{value * 100:{sign}.1f}"
    return f"{value:{sign}.1f}" if unit == "points" else f"{value:{sign}.3f}"


def load_range(shares: Record) -> tuple[str, str, str]:
    """Load of a part's least and most used expert, mean over its layers, and the even load."""
    least, most = (
        "-" if shares[k] is None else f"{shares[k]:.3f}" for k in ("least_load", "most_load")
    )
    return least, most, f"{1 / shares['num_experts']:.3f}"


def _mark(task: Record, limit: int | None) -> str:
    if limit is not None:
        return f" (LIMITED to {limit})"
    return "" if task["complete"] else " (INCOMPLETE)"


def _notes(name: str, task: Record) -> Iterator[str]:
    if "unscored" in task:
        yield f"- {name}: no score, {task['unscored']}."
    for part, load in task.get("experts", {}).items():
        least, most, even = load_range(load)
        yield f"- {name}, load of {part}'s experts: least {least}, most {most}, even {even}."
    if task["missing"]:
        yield f"- {name}: {task['missing']} replies are missing; run again to ask for them."
    if not task["complete"] and task["n"] != task["expected_n"]:
        yield f"- {name}: {task['n']} of {task['expected_n']} samples."
    for condition, part in task["conditions"].items():
        counts = dict(part["flags"])
        for metric, value in part["metrics"].items():
            counts |= {f"{metric}: {flag}": 1 for flag in value["flags"]}
        if counts:
            listed = ", ".join(f"{flag} {count}" for flag, count in sorted(counts.items()))
            yield f"- {name}, {condition} pictures, of {part['n']} answers: {listed}."


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"
