"""A tiny data root of drawn squares, and a model that answers from a script."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.plan import RIGHT
from eval.predict import Answer, TooLargeError
from eval.score import Row, sample_line, task_results
from eval.store import write_json, write_jsonl
from eval.task import Sample, Scored, Task

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30), "grey": (120,) * 3}


class FakeModel:
    """Says ``reply(sample)``; stops with an error instead of the reply after ``crash_after``.

    A batch of more than ``room`` rows is too large for it. Of options that is the likeliest.
    """

    def __init__(
        self,
        reply: Callable[[Sample], str],
        crash_after: int | None = None,
        loss: float = 1.25,
        room: int = 1000,
    ) -> None:
        self.reply = reply
        self.room = room
        self.expected: list[str] = []
        self.crash_after = crash_after
        self.loss = loss
        self.asked: list[str] = []
        self.batches: list[int] = []

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        return [len(sample.prompt) for sample in samples]

    def expect(self, samples: Sequence[Sample]) -> None:
        self.expected += [sample.id for sample in samples]

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
        self._note(samples)
        texts = [self.reply(sample) for sample in samples]
        return [Answer(text, len(text.split()) + 1, finished=True) for text in texts]

    def option_losses(self, samples: Sequence[Sample]) -> list[list[float]]:
        self._note(samples, sum(len(sample.options) for sample in samples))
        return [
            [self.loss + (option != self.reply(sample)) for option in sample.options]
            for sample in samples
        ]

    def answer_losses(self, samples: Sequence[Sample]) -> list[float]:
        self._note(samples)
        return [self.loss + len(sample.references[0]) / 7 for sample in samples]

    def work(self) -> dict[str, int]:
        shown = len(self.asked)
        return {"pictures_shown": shown, "pictures_seen": shown // 2, "tokens_saved": 0}

    def _note(self, samples: Sequence[Sample], rows: int | None = None) -> None:
        rows = len(samples) if rows is None else rows
        if rows > self.room:
            raise TooLargeError(f"{rows} samples")
        if self.crash_after is not None and len(self.asked) >= self.crash_after:
            raise RuntimeError("out of memory")
        self.asked += [sample.id for sample in samples]
        self.batches.append(rows)


@pytest.fixture
def fake_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """The quickstart's held-out files in small: four pictures, two or more questions about each."""
    root = tmp_path / "data"
    (root / "pictures").mkdir(parents=True)
    yesno, choice, short = [], [], []
    names = list(COLOURS)
    for i, (name, colour) in enumerate(COLOURS.items()):
        picture = f"pictures/{name}.png"
        Image.new("RGB", (8, 8), colour).save(root / picture)
        for answer, asked in (("yes", name), ("no", names[i - 1])):
            question = (
                f"Is this square {asked}?\nAnswer the question using a single word or phrase."
            )
            yesno.append(row(f"{name}-{answer}", picture, question, answer, group="square"))
        question = "What colour is it?\n" + "\n".join(
            f"{letter}. {option}" for letter, option in zip("ABCD", names, strict=True)
        )
        choice.append(row(f"{name}-choice", picture, question, "ABCD"[i], options=names))
        short.append(row(f"{name}-kind", picture, "What kind of thing?", "square", group="kind"))
        short.append(row(f"{name}-name", picture, "What is this?", f"a {name} thing", group="name"))
    for file, rows in (("yesno", yesno), ("choice", choice), ("short", short)):
        write_rows(root / "heldout" / f"{file}.jsonl", rows)
    return root


def row(
    id: str, image: str | None, question: str, answer: str, **more: object
) -> dict[str, object]:
    return {"id": id, "image": image, "question": question, "answer": answer, **more}


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run_directory(data_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """``run_directory(name, tasks, replies)``: a finished run's files, made without a model.

    ``replies`` is a function of a sample; where it gives None the reply is missing.
    """

    def write(
        name: str,
        tasks: Sequence[Task],
        reply: Callable[[Sample], str | None],
        *,
        limit: int | None = None,
        profile: str = "llava15",
    ) -> Path:
        results: dict[str, Any] = {"fingerprint": "f" * 64, "limit": limit, "profile": profile}
        results["tasks"] = {}
        for task in tasks:
            rows = [
                Row(RIGHT, {"text": text, "tokens": 2, "finished": True}, Scored(sample, score))
                for sample in task.samples[:limit]
                if (text := reply(sample)) is not None
                for score in [task.score(text, sample)]
            ]
            missing = len(task.samples[:limit]) - len(rows)
            results["tasks"][task.name] = task_results(
                task, rows, missing=missing, limited=limit is not None
            )
            lines = [sample_line(row, data_root) for row in rows]
            write_jsonl(tmp_path / name / "samples" / f"{task.name}.jsonl", lines)
        arguments = {"checkpoint": f"/m/{name}", "dtype": "float32", "profile": profile}
        arguments["data_root"] = str(data_root)
        write_json(
            tmp_path / name / "run.json",
            {"arguments": arguments, "status": "success", "fingerprint": "f" * 64},
        )
        write_json(tmp_path / name / "results.json", results)
        return tmp_path / name

    return write
