"""What a report says of the experts' loads of a run, and the same as a long table."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.report import load_range
from eval.rows import Evaluated
from eval.store import Record
from llava_compete.report.blocks import Block, Figure, Heading, Paragraph, Table
from llava_compete.routing.charts import kinds_of, load_chart
from llava_compete.routing.watch import KINDS

COLUMNS = ("run", "task", "part", "layer", "kind", "tokens", "expert", "load")
HEAD = (
    *("task", "part", "answers", *(f"{kind} tokens" for kind in KINDS)),
    *("least load", "most load", "even load 1/E"),
)
LEGEND = (
    "From the forwards that gave the answers with the right pictures, each question counted as if "
    "it were asked alone. No forward is run on the last token of an answer. Load: of the least and "
    "the most used expert, mean over the layers."
)


class Loads(NamedTuple):
    """What one part's experts were given for one task, see eval.expert_shares."""

    task: str
    part: str
    shares: Record


def loads_of(evaluated: Evaluated) -> list[Loads]:
    """Empty where the run did not count."""
    return [
        Loads(name, part, shares)
        for name, task in evaluated.results["tasks"].items()
        for part, shares in task.get("experts", {}).items()
    ]


def load_blocks(name: str, evaluated: Evaluated) -> Iterator[Block]:
    """A table, and a chart of each part of each task; the charts' files begin with ``name``."""
    loads = loads_of(evaluated)
    if not loads:
        return
    yield Heading(f"Expert load of {evaluated.path}", 3)
    yield Table(HEAD, tuple(map(_row, loads)))
    yield Paragraph(LEGEND)
    for task, part, shares in loads:
        if kinds_of(shares):
            yield Figure(
                f"{name}-{task}-{part}.png",
                load_chart(shares),
                f"{task}, {part}: each expert's share of the (token, expert) pairs, layer by "
                f"layer and kind of token. White: the even share "
                f"1/E = {1 / shares['num_experts']:.1%}; orange: more, blue: less.",
            )


def write_loads(runs: Sequence[Evaluated], path: Path) -> None:
    """A row by ``COLUMNS`` for each expert of each layer and kind of token."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for evaluated in runs:
            for loads in loads_of(evaluated):
                about = {"run": str(evaluated.path), "task": loads.task, "part": loads.part}
                writer.writerows(about | row for row in _rows(loads.shares))


def _rows(shares: Record) -> Iterator[Record]:
    for layer in shares["layers"]:
        for kind in kinds_of({"layers": [layer]}):
            about = {"layer": layer["layer"], "kind": kind, "tokens": shares["tokens"][kind]}
            for expert, load in enumerate(layer["kinds"][kind]["load"]):
                yield about | {"expert": expert, "load": load}


def _row(loads: Loads) -> tuple[str, ...]:
    shares = loads.shares
    tokens = (f"{shares['tokens'].get(kind, 0):,}" for kind in KINDS)
    answers = f"{shares['answers']:,}"
    return (loads.task, loads.part, answers, *tokens, *load_range(shares))
