"""What an epoch's batches are made of: against accelerate's samplers and plain loops."""

from collections import Counter
from itertools import chain
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava_compete.data.batches import BATCHINGS, WINDOW, Batches, best_fit_decreasing

CAPACITY = 100


def draw_lengths(n: int, seed: int = 0, longest: int = CAPACITY) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, longest + 1, n).astype(np.int32)


def make(lengths: Any, batching: str = "shuffled", **changes: Any) -> Batches:
    values = {"batch_size": 3, "max_length": CAPACITY, "seed": 5, **changes}
    return Batches(lengths, batching=batching, **values)


def every_rank(lengths: Any, batching: str, world_size: int, **changes: Any) -> list[list[Any]]:
    """The units (rows or packs) of each step, those of rank 0 first."""
    ranks = [
        list(make(lengths, batching, rank=rank, world_size=world_size, **changes))
        for rank in range(world_size)
    ]
    return [list(chain(*step)) for step in zip(*ranks, strict=True)]


def rows_of(units: Any) -> list[int]:
    return [row for unit in units for row in (unit if isinstance(unit, tuple) else (unit,))]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 12, 23, 24])
def test_shuffled_is_the_order_of_accelerates_samplers(
    n: int, batch_size: int, world_size: int
) -> None:
    for rank in range(world_size):
        for epoch in range(3):
            sampler = SeedableRandomSampler(range(n), data_seed=5)
            sampler.set_epoch(epoch)
            expected = BatchSampler(sampler, batch_size, drop_last=False)
            if world_size > 1:
                expected = BatchSamplerShard(expected, world_size, rank)
            ours = make(draw_lengths(n), batch_size=batch_size, rank=rank, world_size=world_size)
            ours.set_epoch(epoch)
            assert list(ours) == list(expected)
            assert len(ours) == len(expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("n", [1, 4, 18, 100, 1001])
def test_every_row_comes_once_an_epoch(n: int, batching: str, world_size: int) -> None:
    steps = every_rank(draw_lengths(n), batching, world_size)
    units = list(chain(*steps))
    counted = make(draw_lengths(n), batching).num_units
    assert sorted(rows_of(units[:counted])) == list(range(n))
    if world_size == 1:
        assert len(units) == counted
    else:  # the last step is filled up from the beginning of the epoch
        assert len(units) == ceil(counted / (3 * world_size)) * 3 * world_size
        assert units[counted:] == (units[:counted] * len(units))[: len(units) - counted]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_every_epoch_and_rank_has_the_length_that_is_told(batching: str) -> None:
    for rank in range(3):
        batches = make(draw_lengths(200), batching, rank=rank, world_size=3)
        lengths = []
        for epoch in range(5):
            batches.set_epoch(epoch)
            lengths.append(len(list(batches)))
        assert lengths == [len(batches)] * 5
        assert len(batches) == len(make(draw_lengths(200), batching, world_size=3))


@pytest.mark.parametrize("batching", BATCHINGS)
def test_batches_are_a_function_of_seed_and_epoch_alone(batching: str) -> None:
    lengths = draw_lengths(200)
    batches = make(lengths, batching)
    first = list(batches)
    state = torch.random.get_rng_state()
    assert list(batches) == first, "an iteration moved the order of the next"
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    np.random.seed(99)
    assert list(make(lengths, batching)) == first
    batches.set_epoch(1)
    second = list(batches)
    assert second != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(make(lengths, batching, seed=7)) not in (first, second)


def test_length_grouped_sorts_windows_and_shuffles_their_steps() -> None:
    step = 2 * 3
    n = 2 * WINDOW * step + 2 * step + 1
    lengths = draw_lengths(n, longest=80)
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(n, generator=generator).tolist()
    rows = []
    for begin in range(0, n, WINDOW * step):
        rows += sorted(order[begin : begin + WINDOW * step], key=lambda row: lengths[row])
    steps = [rows[begin : begin + step] for begin in range(0, n, step)]
    last = steps.pop()
    places = torch.randperm(len(steps), generator=generator).tolist()
    expected = [steps[place] for place in places]
    found = every_rank(lengths, "length_grouped", world_size=2)
    assert found[:-1] == expected
    assert found[-1] == (last + expected[0])[:step]


@pytest.mark.parametrize(("batching", "most"), [("length_grouped", 0.02), ("packed", 0.005)])
def test_the_ranks_of_a_step_get_sequences_of_near_length(batching: str, most: float) -> None:
    lengths = np.concatenate([draw_lengths(5000), np.full(3000, 40)])
    steps = every_rank(lengths, batching, world_size=4)[:-1]
    sums = [[lengths[list(rows_of([unit]))].sum() for unit in step] for step in steps]
    empty = sum(max(of_step) * len(of_step) - sum(of_step) for of_step in sums)
    assert empty < most * lengths.sum()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 70))
def test_packs_are_those_of_a_plain_best_fit(lengths: list[int], capacity: int) -> None:
    plain: list[int] = []  # what each pack holds
    for length in sorted(lengths, reverse=True):
        fitting = [filled for filled in plain if filled + length <= capacity]
        if fitting:
            plain.remove(max(fitting))
        plain.append(max(fitting, default=0) + length)
    packs = best_fit_decreasing(np.array(lengths), capacity)
    filled = [0] * len(plain)
    for pack, length in zip(packs.pack_N, sorted(lengths, reverse=True), strict=True):
        filled[pack] += length
    assert filled == packs.filled_P.tolist()
    assert sorted(filled) == sorted(plain)


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=200), st.integers(0, 9))
def test_a_pack_fits_and_no_two_fit_into_one(lengths: list[int], epoch: int) -> None:
    batches = make(np.array(lengths), "packed")
    batches.set_epoch(epoch)
    filled = sorted(sum(lengths[row] for row in pack) for batch in batches for pack in batch)
    assert filled[-1] <= CAPACITY
    assert sum(filled[:2]) > CAPACITY or len(filled) == 1
    assert ceil(sum(lengths) / CAPACITY) <= len(filled) == batches.num_units


@pytest.mark.parametrize(("longest", "share"), [(0.1, 0.999), (0.25, 0.998), (1.0, 0.97)])
def test_packs_are_nearly_as_few_as_their_tokens_need(longest: float, share: float) -> None:
    capacity = 2048
    lengths = draw_lengths(20_000, longest=int(longest * capacity))
    fewest = ceil(int(lengths.sum()) / capacity)
    assert fewest >= share * len(best_fit_decreasing(lengths, capacity).filled_P)


def test_packs_hold_the_same_lengths_in_every_epoch_and_other_rows() -> None:
    lengths = draw_lengths(2000)
    batches = make(lengths, "packed")
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append([pack for batch in batches for pack in batch])
    of_length = [Counter(tuple(lengths[list(pack)]) for pack in packs) for packs in epochs]
    assert of_length[0] == of_length[1]
    together = [{frozenset(pack) for pack in packs if len(pack) > 1} for packs in epochs]
    assert len(together[0] & together[1]) < 0.1 * len(together[0])


def test_packs_come_in_random_order() -> None:
    lengths = draw_lengths(2000)
    sizes = [len(pack) for batch in make(lengths, "packed") for pack in batch]
    quarter = len(sizes) // 4
    means = [np.mean(sizes[begin : begin + quarter]) for begin in range(0, 4 * quarter, quarter)]
    assert max(means) < 1.2 * min(means)


@pytest.mark.parametrize("batching", ["shuffled", "length_grouped"])
def test_without_max_length_any_row_may_come(batching: str) -> None:
    batches = make(np.array([5000, 1, 7]), batching, max_length=None)
    assert sorted(rows_of(chain(*batches))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "changes", "message"),
    [
        ([3, 101, 2], {}, "row 1 has 101 tokens, more than max_length=100"),
        ([3, 101, 2], {"batching": "packed"}, "row 1 has 101 tokens, more than max_length=100"),
        ([3], {"batching": "pakced"}, "batching='pakced' is not known; did you mean packed"),
        ([3], {"batching": "packed", "max_length": None}, "max_length, which is not given"),
        ([3, 0], {}, "row 1 has length 0"),
        ([], {}, "no rows"),
    ],
)
def test_what_cannot_be_batched_is_refused(
    lengths: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(np.array(lengths, dtype=np.int32), **changes)
