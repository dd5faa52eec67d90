"""Put requests to a model, batch by batch, and keep every reply the moment its batch is done.

A run that was killed is started again with the same command and asks only what has no reply yet.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tqdm import tqdm

from eval.plan import Request
from eval.store import Record, appending, read_predictions
from eval.task import Sample, Task


class Answer(NamedTuple):
    """The model's own words, stripped of nothing but special tokens.

    ``finished`` is False where the answer was cut at the limit of new tokens.
    """

    text: str
    tokens: int
    finished: bool


class Model(Protocol):
    """What is asked: ``eval.model.LlavaCompete``, or a fake in the tests."""

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]: ...

    def answer_losses(self, samples: Sequence[Sample]) -> list[float]:
        """Mean negative log-likelihood of the first reference, in nats a token, per sample."""


def unanswered(task: Task, requests: Sequence[Request], run_dir: Path) -> list[Request]:
    """The requests whose reply is not in the run directory yet."""
    known = read_predictions(run_dir, task.name)
    return [request for request in requests if request.key not in known]


def predict(
    model: Model, task: Task, requests: Sequence[Request], run_dir: Path, *, batch_size: int = 16
) -> int:
    """Ask what is unanswered and append the replies to the run directory; how many were asked.

    Longest prompts go first, so that a batch size that does not fit in memory fails at once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    todo = unanswered(task, requests, run_dir)
    todo.sort(key=lambda request: (-len(request.sample.prompt), request.key))
    done = len(requests) - len(todo)
    bar = tqdm(total=len(requests), initial=done, desc=task.name, unit="reply")
    with bar, appending(run_dir, task.name) as append:
        for wants in ("answer", "loss"):
            same = [request for request in todo if request.wants == wants]
            for start in range(0, len(same), batch_size):
                batch = same[start : start + batch_size]
                append(_replies(model, task, batch))
                bar.update(len(batch))
    return len(todo)


def _replies(model: Model, task: Task, requests: Sequence[Request]) -> list[Record]:
    samples = [request.sample for request in requests]
    replies: list[Record]
    if requests[0].wants == "answer":
        replies = [answer._asdict() for answer in model.answers(samples, task.max_new_tokens)]
    else:
        replies = [{"loss": loss} for loss in model.answer_losses(samples)]
    return [
        {"key": request.key, "condition": request.condition, "id": request.sample.id, **reply}
        for request, reply in zip(requests, replies, strict=True)
    ]
