"""Which requests go to the model together.

Requests that show the same pictures stand beside each other, so that what is made of a picture can
serve them all; such groups go longest first, so that what does not fit in memory fails at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eval.plan import Request


class Sized(NamedTuple):
    """A request and its length: tokens of the prompt, placeholders of pictures, and the reply."""

    request: Request
    tokens: int


class Limits(NamedTuple):
    """A batch has at most ``rows`` requests, and with its padding at most ``tokens``."""

    rows: int
    tokens: int

    def check(self) -> None:
        """ValueError where not even one request fits."""
        for name, value in zip(("batch_size", "batch_tokens"), self, strict=True):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def half_of(self, batch: Sequence[Sized]) -> "Limits":
        """Limits that keep what comes to half of a batch that was too large."""
        return self._replace(tokens=padded(batch) // 2)


def padded(batch: Sequence[Sized]) -> int:
    """Tokens of the batch when every request is as long as the longest."""
    return len(batch) * max(sized.tokens for sized in batch)


def in_groups(requests: Sequence[Sized]) -> list[list[Sized]]:
    """Requests that show the same pictures; the longest group first, and first in its group.

    The order depends on nothing but the requests, so that every rank finds the same. One without
    pictures is a group of its own.
    """
    groups: dict[object, list[Sized]] = {}
    for sized in sorted(requests, key=_length_and_key):
        sample = sized.request.sample
        groups.setdefault(sample.images or sized.request.key, []).append(sized)
    return sorted(groups.values(), key=lambda group: _length_and_key(group[0]))


def first_batch(queue: Sequence[Sized], limits: Limits, begin: int = 0) -> list[Sized]:
    """As many of the queue from ``begin`` on as the limits allow; one at least where one is left.

    Fewer where that keeps together requests that show the same pictures, unless the batch would be
    less than half as large.
    """
    end = _end(queue, limits, begin)
    if end == len(queue) or not (pictures := queue[end].request.sample.images):
        return list(queue[begin:end])
    whole = end
    while whole > begin and queue[whole - 1].request.sample.images == pictures:
        whole -= 1
    return list(queue[begin : whole if 2 * (whole - begin) >= end - begin else end])


def _end(queue: Sequence[Sized], limits: Limits, begin: int) -> int:
    longest = 0
    for rows, place in enumerate(range(begin, len(queue))):
        longest = max(longest, queue[place].tokens)
        if rows and (rows == limits.rows or (rows + 1) * longest > limits.tokens):
            return place
    return len(queue)


def _length_and_key(sized: Sized) -> tuple[int, str]:
    return -sized.tokens, sized.request.key
