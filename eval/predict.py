"""Put requests to a model, batch by batch, and keep every reply the moment its batch is done.

A run that was killed is started again with the same command and asks only what has no reply yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from tqdm import tqdm

from eval.batches import Limits, Sized, first_batch, in_groups
from eval.options import candidates, reply_of
from eval.plan import Request
from eval.ranks import Rank
from eval.store import Record, appending, read_predictions
from eval.task import Sample, Task

ONLY_RANK = Rank()
END_OF_TURN = 2  # tokens at most behind an answer


class Answer(NamedTuple):
    """The model's own words, stripped of nothing but special tokens.

    ``finished`` is False where the answer was cut at the limit of new tokens. ``experts``, where
    they are counted, as ``eval.expert_load`` counts them. ``beyond`` is True where prompt and
    answer have more tokens than the language model was made for, else None.
    """

    text: str
    tokens: int
    finished: bool
    experts: Record | None = None
    beyond: bool | None = None

    def reply(self) -> Record:
        """As it is stored: what is None is left out."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class TooLargeError(Exception):
    """A batch does not fit in the device's memory."""


class Model(Protocol):
    """What is asked: ``eval.model.LlavaCompete``, or a fake in the tests.

    What runs the model raises TooLargeError where a batch does not fit in memory.
    """

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sample's prompt, its pictures' placeholders counted."""

    def expect(self, samples: Sequence[Sample]) -> None:
        """Begin to read the pictures of a batch that comes next."""

    def answers(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]: ...

    def option_losses(self, samples: Sequence[Sample]) -> list[list[float]]:
        """The same as ``answer_losses`` of each option in place of the reference, per sample."""

    def answer_losses(self, samples: Sequence[Sample]) -> list[float]:
        """Mean negative log-likelihood of the first reference, in nats a token, per sample."""

    def work(self) -> dict[str, int]:
        """So far: pictures shown with questions, those seen by the tower, prompt tokens saved."""


def unanswered(task: Task, requests: Sequence[Request], run_dir: Path) -> list[Request]:
    """The requests whose reply is not in the run directory yet."""
    known = read_predictions(run_dir, task.name)
    return [request for request in requests if request.key not in known]


def predict(
    model: Model,
    task: Task,
    requests: Sequence[Request],
    run_dir: Path,
    *,
    batch_size: int = 64,
    batch_tokens: int = 16384,
    rank: Rank = ONLY_RANK,
) -> int:
    """Ask what is unanswered and append the replies to the run directory; how many were asked.

    Of several ranks each asks the pictures of its share. ``batches`` says what goes together. A
    batch that is too large for the memory is asked again in halves, and those behind it stay as
    small; TooLargeError where one request alone does not fit.
    """
    limits = Limits(batch_size, batch_tokens)
    limits.check()
    known = read_predictions(run_dir, task.name)
    queues = []
    for wants in ("options", "answer", "loss"):
        same = _sized(model, task, [request for request in requests if request.wants == wants])
        # All requests are dealt, answered or not: a rank that begins later finds the same shares.
        share = [sized for group in rank.share(in_groups(same)) for sized in group]
        queues.append([sized for sized in share if sized.request.key not in known])
    todo = sum(map(len, queues))
    bar = tqdm(total=todo, desc=task.name, unit="reply", disable=rank.number > 0)
    with bar, appending(run_dir, task.name, rank.number) as append:
        for queue in queues:
            for replies in _replies_to(model, task, queue, _limits(task, queue, limits)):
                append(replies)
                bar.update(len(replies))
    return todo


def _limits(task: Task, queue: Sequence[Sized], limits: Limits) -> Limits:
    return limits._replace(rows=max(1, limits.rows // _rows([s.request for s in queue], task)))


def _rows(requests: Sequence[Request], task: Task) -> int:
    """Rows of a batch that one request takes at most; those of its options stay together."""
    return max((len(candidates(task, request.sample)) or 1 for request in requests), default=1)


def _sized(model: Model, task: Task, requests: Sequence[Request]) -> list[Sized]:
    if requests and requests[0].wants == "options":
        return _sized_with_options(model, task, requests)
    tokens = model.lengths([request.sample for request in requests])
    return [
        Sized(request, length + task.max_new_tokens)
        for request, length in zip(requests, tokens, strict=True)
    ]


def _sized_with_options(model: Model, task: Task, requests: Sequence[Request]) -> list[Sized]:
    # As if each had as many options as any, each as long as its longest: never less than it is.
    answered = [
        replace(sample, prompt=sample.prompt + max(candidates(task, sample), key=len))
        for sample in (request.sample for request in requests)
    ]
    rows = _rows(requests, task)
    return [
        Sized(request, rows * (length + END_OF_TURN))
        for request, length in zip(requests, model.lengths(answered), strict=True)
    ]


def _replies_to(
    model: Model, task: Task, queue: Sequence[Sized], limits: Limits
) -> Iterator[list[Record]]:
    """The replies to the queue, batch by batch."""
    asked = 0
    while asked < len(queue):
        batch = first_batch(queue, limits, asked)
        if behind := first_batch(queue, limits, asked + len(batch)):
            model.expect([sized.request.sample for sized in behind])
        replies = _replies(model, task, [sized.request for sized in batch], alone=len(batch) == 1)
        if replies is None:
            limits = limits.half_of(batch)
            tqdm.write(f"out of memory: at most {limits.tokens} tokens in a batch from here on")
            continue
        asked += len(batch)
        yield replies


def _replies(
    model: Model, task: Task, requests: Sequence[Request], *, alone: bool
) -> list[Record] | None:
    """One for each request; None where they do not fit in memory and are more than one."""
    samples = [request.sample for request in requests]
    replies: list[Record]
    try:
        if requests[0].wants == "answer":
            replies = [answer.reply() for answer in model.answers(samples, task.max_new_tokens)]
        elif requests[0].wants == "options":
            asked = [replace(sample, options=candidates(task, sample)) for sample in samples]
            losses = model.option_losses(asked)
            replies = [reply_of(*pair) for pair in zip(samples, losses, strict=True)]
        else:
            replies = [{"loss": loss} for loss in model.answer_losses(samples)]
    except TooLargeError:
        if alone:
            raise
        return None
    return [
        {"key": request.key, "condition": request.condition, "id": request.sample.id, **reply}
        for request, reply in zip(requests, replies, strict=True)
    ]
