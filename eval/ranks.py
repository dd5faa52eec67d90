"""Several processes at one run, as torchrun starts them.

Each rank asks its own share and appends to files of its own; each reads the files of all when it
begins, so that any number of ranks goes on from what any other number began. They never speak to
each other: rank 0 sees by the files that the others are done.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

POLL = 0.5  # seconds

T = TypeVar("T")


class Rank(NamedTuple):
    """This process among ``world_size`` of them; ``local`` is its number on this machine."""

    number: int = 0
    world_size: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Rank":
        """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; the only process where unset."""
        found = {}
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            text = os.environ.get(name, default)
            if not text.isdecimal():
                raise ValueError(f"{name}={text!r} in the environment must be a whole number")
            found[name] = int(text)
        if found["RANK"] >= found["WORLD_SIZE"]:
            raise ValueError(
                f"RANK={found['RANK']} in the environment must be below "
                f"WORLD_SIZE={found['WORLD_SIZE']}"
            )
        return cls(*found.values())

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every world_size-th item: of items sorted by length all shares are alike."""
        return items[self.number :: self.world_size]


def wait_for_others(missing: Callable[[], int], patience: float) -> int:
    """Wait while replies come; what is missing when all are there or none came for so long."""
    left, since = missing(), time.monotonic()
    while left and time.monotonic() - since < patience:
        time.sleep(POLL)
        if (now := missing()) < left:
            left, since = now, time.monotonic()
    return left
