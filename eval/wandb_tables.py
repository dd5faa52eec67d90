"""Scores and samples of runs as wandb tables; without an account wandb writes them to disk.

Each run directory becomes a wandb run of the job type ``eval``, in the project that
``WANDB_PROJECT`` names, else ``PROJECT``.
"""

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from eval.answers import galleries, sample_value
from eval.plan import RIGHT
from eval.readers import read_jsonl
from eval.rows import COLUMNS, Evaluated, read, rows, status
from eval.store import Record
from llava_compete.report.blocks import Card, Gallery
from llava_compete.training.wandb_account import use_wandb_offline_without_account

PROJECT = "llava_compete"
SAMPLES = (
    *("id", "condition", "group", "prompt", "references", "text", "parsed"),
    *("judged by", "value", "flags"),
)
CARDS = ("sample", "picture", "asked", "answer", "truth", "right")


def log_tables(runs: Sequence[Path], data_root: Path | None = None) -> list[Path]:
    """Send or write every run; gives wandb's folders of them.

    ValueError where a run lacks a file. ``data_root`` is where the pictures lie now, if moved.
    """
    evaluated = [read(directory) for directory in runs]
    content = [_content(one, data_root) for one in evaluated]
    use_wandb_offline_without_account()
    return [_log(one, *found) for one, found in zip(evaluated, content, strict=True)]


def headline(task: Record, limit: int | None) -> tuple[str, float] | None:
    """A task's headline, its name marked where not all samples are in it; None without a score."""
    metrics = task["conditions"].get(RIGHT, {"metrics": {}})["metrics"]
    if "unscored" in task or task["headline"] not in metrics:
        return None
    state = status(task, limit)
    mark = "" if state == "complete" else f" ({state}: n {task['n']} of {task['expected_n']})"
    return f"{task['headline']}{mark}", metrics[task["headline"]]["value"]


def _content(
    evaluated: Evaluated, data_root: Path | None
) -> tuple[dict[str, list[list[Any]]], list[Card]]:
    path, tasks = evaluated.path, evaluated.results["tasks"]
    cards = [
        card
        for block in galleries(path.name, path, data_root)
        if isinstance(block, Gallery)
        for card in block.cards
    ]
    return {name: list(_samples(path, name, task)) for name, task in tasks.items()}, cards


def _samples(directory: Path, name: str, task: Record) -> Iterator[list[Any]]:
    for _, row in read_jsonl(directory / "samples" / f"{name}.jsonl"):
        value = sample_value(row["values"], task["headline"])
        yield [
            *(row[key] for key in ("id", "condition", "group", "prompt")),
            " / ".join(dict.fromkeys(row["references"])),
            *(row["text"], row["parsed"]),
            *(value, None if value is None else row["values"][value]),
            ", ".join(row["flags"]),
        ]


def _log(evaluated: Evaluated, samples: dict[str, list[list[Any]]], cards: Sequence[Card]) -> Path:
    import wandb  # where its user wants it

    numbers = [[row[column] for column in COLUMNS] for row in rows(evaluated)]
    tables = {"scores": wandb.Table(list(COLUMNS), numbers)}
    tables |= {f"samples/{name}": wandb.Table(list(SAMPLES), s) for name, s in samples.items()}
    pictures = [
        [
            *(card.source, wandb.Image(Image.open(BytesIO(card.png)))),
            *(card.question, card.answer, card.truth, card.right),
        ]
        for card in cards
    ]
    tables["pictures"] = wandb.Table(list(CARDS), pictures)
    results = evaluated.results
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        job_type="eval",
        name=evaluated.path.name,
        config=evaluated.run["arguments"] | {"fingerprint": results["fingerprint"]},
        reinit="finish_previous",
    ) as run:
        run.log(tables)
        for name, task in results["tasks"].items():
            if (found := headline(task, results["limit"])) is not None:
                run.summary[f"{name}/{found[0]}"] = found[1]
        return Path(run.dir).parent
