"""compare.json, report.md and compare.png of what was compared."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.store import Record, write_json
from experiments.compare.figure import figure
from experiments.compare.settings import REFERENCE, Job
from experiments.compare.statistics import LEVEL, Difference, Spread
from experiments.compare.summary import FIRST, LOSS, Row, qualities
from llava_compete.report.drawing import to_png

FILES = ("compare.json", "report.md", "compare.png")


def write(out: Path, rows: Sequence[Row], results: dict[Job, Record], cost: Record) -> str:
    """Write ``FILES``; the report's text."""
    data = {
        "rows": [
            {
                "router": row.router,
                "by_token": row.by_token,
                "figures": {name: found._asdict() for name, found in row.figures.items()},
                "differences": {name: d._asdict() for name, d in row.differences.items()},
                "by_seed": row.by_seed,
                "cost": row.cost._asdict(),
            }
            for row in rows
        ],
        "jobs": list(results.values()),
        "cost": cost,
    }
    write_json(out / FILES[0], data)
    text = report(rows, next(iter(results.values())), cost)
    (out / FILES[1]).write_text(text)
    (out / FILES[2]).write_bytes(to_png(figure(rows)))
    return text


def report(rows: Sequence[Row], job: Record, cost: Record) -> str:
    """The section in Markdown; ``job`` is any of the jobs, which have their settings in common."""
    seeds = rows[0].figures[LOSS].n
    samples = job["loss_samples"]
    parts = [
        f"{len(rows)} routers, {seeds} seeds, {job['steps']} steps each; held-out loss of "
        f"{samples} answers, nats a token. Mean +- standard deviation over seeds; beside it the "
        f"mean difference to {REFERENCE}, paired by seed, with its {LEVEL:.0%} interval (t, "
        f"{seeds - 1} degrees of freedom).",
        _quality_table(rows),
        "\n".join(_notes(rows)),
        "![Comparison of routers](compare.png)",
        _routing_table(rows),
        _cost_note(rows, cost),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(rows: Sequence[Row]) -> list[str]:
    """Which differences the spread carries, and how many would be there by chance."""
    others = [row for row in rows if row.router != REFERENCE]
    if rows[0].figures[LOSS].sd is None:
        return ["One seed has no spread: nothing can be said about differences between routers."]
    lines = []
    for name in qualities(rows[0]):
        carried = [row for row in others if row.differences[name].carried]
        listed = ", ".join(f"{r.router} {_signed(r.differences[name], name)}" for r in carried)
        lines.append(f"{name}: {listed or 'none'}.")
    expected = (1 - LEVEL) * len(others)
    return [
        f"Differences to {REFERENCE} whose {LEVEL:.0%} interval excludes 0 (of {len(others)} "
        f"comparisons a line, {expected:.1f} are expected to do so by chance alone):",
        *(f"- {line}" for line in lines),
    ]


def _quality_table(rows: Sequence[Row]) -> str:
    names = qualities(rows[0])
    scored = [name for name in names if name != LOSS]
    head = ("router", FIRST, LOSS, f"less {REFERENCE}'s", *scored)
    body = []
    for row in rows:
        against = "" if row.router == REFERENCE else _interval(row.differences[LOSS])
        losses = (_spread(row.figures[name], 3) for name in (FIRST, LOSS))
        body.append((_name(row), *losses, against, *(_score(row, name) for name in scored)))
    return _table(head, body)


def _routing_table(rows: Sequence[Row]) -> str:
    found = dict.fromkeys(key.split("/")[0] for row in rows for key in row.figures if "/" in key)
    head = ["router", f"seconds a step / {REFERENCE}", "memory", "extra router parameters"]
    for part in found:
        # One part needs no name: it is all there is.
        of_part = "" if len(found) == 1 else f" ({part})"
        head += [f"{name}{of_part}" for name in ("experts a token", "load entropy", "agreement")]
    body = []
    for row in rows:
        low, high = row.cost.seconds_low, row.cost.seconds_high
        cells = [
            _name(row),
            f"{row.cost.seconds:.2f} ({low:.2f} to {high:.2f})",
            f"{row.cost.memory:.3f}",
            f"{row.cost.extra_parameters:+,}" if row.cost.extra_parameters else "0",
        ]
        for part in found:
            cells += [
                _figure(row, f"{part}/experts_per_token", 2),
                _figure(row, f"{part}/entropy", 3),
                f"{_figure(row, f'{part}/agreement', 3)} "
                f"(by loads alone {_figure(row, f'{part}/agreement_shuffled', 3, bare=True)})",
            ]
        body.append(tuple(cells))
    return _table(head, body)


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    yield from verdict(rows)
    yield ""
    yield (
        f"{FIRST}: of the training's first batch, before anything was learnt; the same batch for "
        f"all routers of a seed. Routers whose weights of a token do not sum to 1 move the output "
        f"of the upcycled model and begin higher or lower."
    )
    if any(row.by_token for row in rows):
        yield ""
        yield (
            "(t): trained in its paper's form, which chooses across tokens, and scored in its form "
            "by token (scope=token), because the other would see the answers."
        )


def _cost_note(rows: Sequence[Row], cost: Record) -> str:
    extra = [row for row in rows if row.cost.extra_parameters]
    listed = ", ".join(f"{row.router} {row.cost.extra_parameters:+,}" for row in extra) or "none"
    rounds = len(cost["routers"][REFERENCE]["seconds"])
    return (
        f"Seconds: forward and backward of a micro-batch of {cost['batch_size']}, all routers in "
        f"turn in one process ({cost['device']}, {cost['threads']} threads), median of {rounds} "
        f"rounds (lowest to highest), over the median of four of {REFERENCE}'s in the same round; "
        f"of a router that competes in the mean step, in which "
        f"{cost['competing_share']:.3f} of its layers compete. Memory: "
        + (
            "what autograd keeps for the backward"
            if cost["device"] == "cpu"
            else "peak of forward and backward"
        )
        + f" of the largest step, over {REFERENCE}'s. Router parameters beyond {REFERENCE}'s "
        f"{rows[0].cost.parameters:,}: {listed}. Load entropy: 1 is even. Agreement: share of a "
        f"token's experts that the competition would have chosen too; by loads alone: what "
        f"choices with these loads, dealt to the tokens at random, would reach."
    )


def _name(row: Row) -> str:
    return f"{row.router} (t)" if row.by_token else row.router


def _score(row: Row, name: str) -> str:
    text = _spread(row.figures[name], 1, scale=100)
    if row.router == REFERENCE:
        return text
    return f"{text} ({_interval(row.differences[name], 1, scale=100)})"


def _figure(row: Row, name: str, digits: int, *, bare: bool = False) -> str:
    if name not in row.figures:  # where no layer has it in any seed
        return "-"
    found = row.figures[name]
    return f"{found.mean:.{digits}f}" if bare else _spread(found, digits)


def _spread(found: Spread, digits: int, scale: float = 1) -> str:
    text = f"{found.mean * scale:.{digits}f}"
    return text if found.sd is None else f"{text} +- {found.sd * scale:.{digits}f}"


def _interval(found: Difference, digits: int = 3, scale: float = 1) -> str:
    text = f"{found.mean * scale:+.{digits}f}"
    if found.half is None:
        return text
    low, high = found.mean - found.half, found.mean + found.half
    mark = " *" if found.carried else ""
    return f"{text} [{low * scale:+.{digits}f}, {high * scale:+.{digits}f}]{mark}"


def _signed(found: Difference, name: str) -> str:
    return f"{found.mean:+.3f}" if name == LOSS else f"{found.mean * 100:+.1f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [_line(head, widths), rule, *(_line(row, widths) for row in body)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"
