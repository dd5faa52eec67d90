"""Which rows of an epoch make which batch, on each rank.

N rows of the data, P packs, Q = P + 1, U units that a batch counts (rows or packs), S global
batches (one batch of every rank) of B units each.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from llava_compete.names import nearest

BATCHINGS = ("shuffled", "length_grouped", "packed")
WINDOW = 64  # global batches whose units are sorted by length together

Ints = NDArray[np.integer]


class Order(NamedTuple):
    """What the order of the rows depends on beside the seed."""

    grouped: int  # units of near length that come one after the other: a global batch
    filled: int  # an epoch's units are filled up to a multiple of it

    @classmethod
    def of(cls, batch_size: int, world_size: int) -> "Order":
        """That of a run which begins with so many ranks."""
        step = batch_size * world_size
        return cls(grouped=step, filled=step if world_size > 1 else 1)


class Batches(Sampler[list[int] | list[tuple[int, ...]]]):
    """The batches of one rank: lists of row numbers, or of packs, which are tuples of them.

    ``shuffled``: a permutation of the rows, cut into batches: the order of accelerate's
    SeedableRandomSampler and BatchSamplerShard.
    ``length_grouped``: the permutation in windows of WINDOW global batches, each sorted by length
    and cut into global batches, which then come in random order: the ranks of one step get rows of
    nearly one length.
    ``packed``: the rows in packs of at most ``max_length`` tokens (best fit decreasing over the
    epoch); a batch is ``batch_size`` packs, grouped like rows by how full they are. Which lengths
    lie together is the same in every epoch, which of the rows of one length is drawn anew.

    ``order`` says which units are grouped and how far an epoch is filled up; a run that goes on
    with other ranks keeps that of its beginning, and so draws the same rows in the same order.

    A function of (``seed``, ``epoch``) alone, ranks differing only in the part they take. Every
    row comes once an epoch. What lacks to the last global batch is filled up from the epoch's
    beginning where there are several ranks, as accelerate does; a single rank has a shorter last
    batch. ``lengths`` are tokens of a row; ValueError where one is longer than ``max_length``.
    """

    epoch: int = 0  # set by set_epoch; holds until its next call

    def __init__(
        self,
        lengths: Ints,
        *,
        batching: str,
        batch_size: int,
        max_length: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        order: "Order | None" = None,
    ) -> None:
        if batching not in BATCHINGS:
            raise ValueError(f"batching={batching!r} is not known{nearest(batching, BATCHINGS)}")
        if batching == "packed" and max_length is None:
            raise ValueError(
                "batching=packed fills sequences up to max_length, which is not given: set it"
            )
        self.lengths_N: Ints = np.asarray(lengths, dtype=np.int32)
        _check_lengths(self.lengths_N, max_length)
        self.batching = batching
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.order = order or Order.of(batch_size, world_size)
        if batching == "packed":
            assert max_length is not None
            self._packs = best_fit_decreasing(self.lengths_N, max_length)

    @property
    def num_units(self) -> int:
        """What a batch is counted in: packs of an epoch where it is packed, else rows."""
        return len(self._packs.filled_P) if self.batching == "packed" else len(self.lengths_N)

    @property
    def num_places(self) -> int:
        """Units of an epoch, those counted twice that fill it up."""
        return _round_up(self.num_units, self.order.filled)

    def __len__(self) -> int:
        """Batches of an epoch, the same in every epoch and on every rank."""
        return -(-self.num_places // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """The next iteration goes through this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int] | list[tuple[int, ...]]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows_N = _permutation(len(self.lengths_N), generator)
        step = self.order.grouped
        if self.batching == "packed":
            packs_P = _permutation(self.num_units, generator)
            packs_P = _group_by_length(packs_P, self._packs.filled_P, step, generator)
            rows_N, bounds_Q = self._packs.fill(rows_N, self.lengths_N, packs_P)
            for packs in self._numbers():
                yield [tuple(rows_N[bounds_Q[p] : bounds_Q[p + 1]].tolist()) for p in packs]
            return
        if self.batching == "length_grouped":
            rows_N = _group_by_length(rows_N, self.lengths_N, step, generator)
        for numbers in self._numbers():
            yield rows_N[numbers].tolist()

    def _numbers(self) -> Iterator[Ints]:
        """The places in the epoch's order that each batch of this rank takes."""
        for step in range(len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            last = first + self.batch_size
            if self.world_size == 1:
                last = min(last, self.num_places)
            yield np.arange(first, last) % self.num_units


class Packs(NamedTuple):
    """Which pack each row lies in, the rows standing by descending length."""

    pack_N: Ints  # int32
    filled_P: Ints  # int32, tokens of its rows

    def fill(self, order_N: Ints, lengths_N: Ints, packs_P: Ints) -> tuple[Ints, Ints]:
        """The rows pack by pack in the order ``packs_P``, and where packs begin and end (P+1,).

        Rows of equal length take their places in the order of ``order_N``.
        """
        longest_first_N = order_N[np.argsort(-lengths_N[order_N], kind="stable")]
        place_N = np.argsort(packs_P)[self.pack_N]
        rows_N = longest_first_N[np.argsort(place_N, kind="stable")]
        return rows_N, np.concatenate([[0], np.cumsum(np.bincount(place_N))])


def best_fit_decreasing(lengths_N: Ints, capacity: int) -> Packs:
    """Longest first, each into the fullest pack that still has room for it, else into a new one.

    For many rows at most 11/9 of the fewest packs possible (Johnson et al. 1974). The packs depend
    on which lengths there are, not on their order. Packs with equal room are kept together, and
    rows of equal length are placed together: the fullest pack that fits stays the fullest until it
    has taken ``room // length`` of them.
    """
    sizes, counts = np.unique(lengths_N, return_counts=True)
    open_packs: dict[int, list[Ints]] = defaultdict(list)  # by the room left
    rooms = 0  # bit s: some pack has room for s more
    num_packs = 0
    placed: list[Ints] = []

    def put(packs: Ints, room: int) -> None:
        nonlocal rooms
        if len(packs) and room:
            open_packs[room].append(packs)
            rooms |= 1 << room

    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            if fitting := rooms >> size:
                room = size + (fitting & -fitting).bit_length() - 1
                packs = open_packs[room].pop()
                if not open_packs[room]:
                    rooms ^= 1 << room
            else:
                room = capacity
                packs = np.arange(num_packs, num_packs - (-count // (room // size)), dtype=np.int32)
                num_packs += len(packs)
            each = room // size
            taken = min(count, each * len(packs))
            full, rest = divmod(taken, each)
            placed.append(np.repeat(packs, each)[:taken])
            put(packs[:full], room - each * size)
            put(packs[full : full + 1] if rest else packs[:0], room - rest * size)
            put(packs[full + bool(rest) :], room)
            count -= taken
    pack_N = np.concatenate(placed)
    filled_P = np.bincount(pack_N, weights=np.repeat(sizes, counts)[::-1])
    return Packs(pack_N, filled_P.astype(np.int32))


def _group_by_length(units_U: Ints, lengths: Ints, step: int, generator: torch.Generator) -> Ints:
    """Global batches of ``step`` units of near length in random order; an incomplete one is last.

    ``lengths[unit]`` is a unit's length.
    """
    window_U = np.arange(len(units_U)) // (WINDOW * step)
    units_U = units_U[np.lexsort((lengths[units_U], window_U))]
    whole = len(units_U) // step
    units_SB = units_U[: whole * step].reshape(whole, step)[_permutation(whole, generator)]
    return np.concatenate([units_SB.ravel(), units_U[whole * step :]])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _permutation(n: int, generator: torch.Generator) -> Ints:
    return torch.randperm(n, generator=generator).numpy().astype(np.int32)


def _check_lengths(lengths_N: Ints, max_length: int | None) -> None:
    if not len(lengths_N):
        raise ValueError("no rows to make batches of")
    if lengths_N.min() < 1:
        row = int(lengths_N.argmin())
        raise ValueError(f"row {row} has length {lengths_N[row]}; a row has at least one token")
    if max_length is not None and lengths_N.max() > max_length:
        row = int(lengths_N.argmax())
        raise ValueError(
            f"row {row} has {lengths_N[row]} tokens, more than max_length={max_length}: raise "
            f"max_length or exclude the row"
        )
