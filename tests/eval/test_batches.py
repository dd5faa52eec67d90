from pathlib import Path

import pytest

from eval.batches import Limits, Sized, first_batch
from eval.plan import Request
from eval.task import Sample

PLENTY = 10**6


def queue(*pictures, tokens=10):
    """A request for each letter, a question about the picture of that name; "-": without one."""
    return [
        Sized(Request(str(i), "right", "answer", Sample(str(i), "", ("",), images(name))), tokens)
        for i, name in enumerate("".join(pictures))
    ]


def images(name):
    return () if name == "-" else (Path(name),)


def batches(requests, limits):
    """The names of the pictures batch by batch."""
    found, begin = [], 0
    while batch := first_batch(requests, limits, begin):
        begin += len(batch)
        names = [s.request.sample.images[0].name if s.request.sample.images else "-" for s in batch]
        found.append("".join(names))
    return found


@pytest.mark.parametrize(
    ("asked", "rows", "expected"),
    [
        ("aaabbbcccd", 10, ["aaabbbcccd"]),
        ("aaabbbcccd", 8, ["aaabbb", "cccd"]),
        ("aaabbbcccd", 7, ["aaabbb", "cccd"]),
        ("aaabbb", 5, ["aaa", "bbb"]),
        ("abbbbb", 4, ["abbb", "bb"]),  # one row alone would be a batch too small
        ("aaaaaaaab", 3, ["aaa", "aaa", "aab"]),  # more questions than a batch has rows
        ("-----", 2, ["--", "--", "-"]),  # no picture is shared
        ("aab--", 2, ["aa", "b-", "-"]),
        ("aabb", 1, ["a", "a", "b", "b"]),
    ],
)
def test_the_questions_about_a_picture_stay_together(asked, rows, expected):
    assert batches(queue(asked), Limits(rows, PLENTY)) == expected


def test_the_limit_of_tokens_counts_padding():
    requests = [*queue("ab", tokens=10), *queue("cd", tokens=40)]
    assert batches(requests, Limits(4, 100)) == ["ab", "cd"]
    assert batches(requests, Limits(4, 160)) == ["abcd"]
    assert batches(requests, Limits(4, 1)) == ["a", "b", "c", "d"]
