"""Runs side by side: the headlines with a column for each run, their flags, what differs."""

from collections.abc import Iterator, Sequence

from eval.inference import describe
from eval.plan import RIGHT
from eval.report import estimate
from eval.rows import Evaluated, status
from eval.store import Record
from llava_compete.report.blocks import Block, Bullets, Paragraph, Table

LEGEND = (
    "Headline metrics with the right pictures: shares in percent, \N{PLUS-MINUS SIGN} one standard "
    "error, points as the benchmark counts them; n is the number of samples that were scored, of "
    "those the benchmark has. A number with a word in capitals is not the benchmark's: LIMITED "
    "asked a few samples, INCOMPLETE lacks replies or samples."
)


def comparison(runs: Sequence[Evaluated]) -> Iterator[Block]:
    """Tables of the runs, of their headlines and of their flags, and what to beware of."""
    yield _runs(runs)
    paths = tuple(str(evaluated.path) for evaluated in runs)
    lines = [(name, metric) for name in _tasks(runs) for metric in _headlines(name, runs)]
    cells = ((*line, *(_cell(*line, evaluated) for evaluated in runs)) for line in lines)
    yield Table(("task", "headline", *paths), tuple(cells))
    yield Paragraph(LEGEND)
    flags = tuple(_flags(runs))
    if flags:
        yield Table(("task", "flag, of the answers", *paths), flags)
    notes = tuple(note for name in _tasks(runs) for note in _differences(name, runs))
    if notes:
        yield Bullets(notes)


def _runs(runs: Sequence[Evaluated]) -> Table:
    head = ("run", "checkpoint", "fingerprint", "dtype", "profile", "ended as", "routing, decoding")
    return Table(
        head,
        tuple(
            (
                str(path),
                run["arguments"]["checkpoint"],
                results["fingerprint"][:12],
                run["arguments"]["dtype"],
                results["profile"],
                run["status"],
                "; ".join(describe(results.get("changes", {}))) or "as saved",
            )
            for path, run, results in runs
        ),
    )


def _tasks(runs: Sequence[Evaluated]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.results["tasks"]))


def _of(name: str, runs: Sequence[Evaluated]) -> list[Record]:
    return [run.results["tasks"][name] for run in runs if name in run.results["tasks"]]


def _headlines(name: str, runs: Sequence[Evaluated]) -> list[str]:
    return list(dict.fromkeys(task["headline"] for task in _of(name, runs)))


def _cell(name: str, metric: str, evaluated: Evaluated) -> str:
    results = evaluated.results
    if name not in results["tasks"]:
        return "-"
    task = results["tasks"][name]
    state = status(task, results["limit"])
    about = f"n {task['n']:,} of {task['expected_n']:,}"
    if state != "complete":
        about = f"{state}: {about}"
    value = task["conditions"].get(RIGHT, {"metrics": {}})["metrics"].get(metric)
    if value is None or "unscored" in task:
        return f"no score ({about})"
    text = estimate(value, value["unit"]).replace("+-", "\N{PLUS-MINUS SIGN}")
    return f"{text} ({', '.join([about, *value['flags']])})"


def _flags(runs: Sequence[Evaluated]) -> Iterator[tuple[str, ...]]:
    for name in _tasks(runs):
        parts = [_right(name, evaluated) for evaluated in runs]
        flags = sorted({flag for part in parts if part is not None for flag in part["flags"]})
        for flag in flags:
            yield (name, flag, *(_count(flag, part) for part in parts))


def _count(flag: str, part: Record | None) -> str:
    return "-" if part is None else f"{part['flags'].get(flag, 0):,} of {part['n']:,}"


def _right(name: str, evaluated: Evaluated) -> Record | None:
    part: Record | None = (
        evaluated.results["tasks"].get(name, {"conditions": {}})["conditions"].get(RIGHT)
    )
    return part


def _differences(name: str, runs: Sequence[Evaluated]) -> Iterator[str]:
    """Why numbers of one task do not compare."""
    asked = [evaluated for evaluated in runs if name in evaluated.results["tasks"]]
    held = {
        "profile": [evaluated.results["profile"] for evaluated in asked],
        **{
            key: [task[key] for task in _of(name, runs)]
            for key in ("version", "headline", "expected_n", "description")
        },
    }
    for key, values in held.items():
        if len(different := list(dict.fromkeys(map(str, values)))) > 1:
            listed = " and ".join(different)
            yield f"{name}: the runs differ in {key} ({listed}), so their numbers do not compare."
