"""The rows of a step, whatever the number of processes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llava_compete.data.batches import BATCHINGS, Batches, Order
from llava_compete.training.order import kept_accumulation, order_settings, run_order


def args(batch_size: int, accumulation: int, world_size: int) -> Any:
    return SimpleNamespace(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        world_size=world_size,
        process_index=0,
    )


def manifest(
    rows: int, world_size: int, order: tuple[int, int] = (1, 1), begun_by: int | None = None
) -> Any:
    settings = {"rows_per_step": rows, "order": list(order)}
    settings["begun_by_processes"] = begun_by or world_size
    return SimpleNamespace(settings=settings, world_size=world_size)


@pytest.mark.parametrize(
    ("batch_size", "given", "processes", "kept"),
    [(4, 1, 1, 8), (4, 1, 4, 2), (4, 2, 4, 2), (4, 1, 8, 1), (2, 7, 1, 16), (4, 3, 2, 3)],
)
def test_accumulation_keeps_the_rows_of_a_step(
    batch_size: int, given: int, processes: int, kept: int
) -> None:
    before = manifest(rows=32, world_size=2)
    assert kept_accumulation(args(batch_size, given, processes), before) == kept


def test_a_moved_run_keeps_its_rows_at_the_second_start_too() -> None:
    """Begun by 2 with 4 micro-batches of 4 rows, gone on by 1, and by 1 again."""
    before = manifest(rows=32, world_size=1, begun_by=2)
    assert kept_accumulation(args(4, 4, 1), before) == 8
    assert order_settings(args(4, 8, 1), before, Order(8, 8)) == {
        "order": [8, 8],
        "begun_by_processes": 2,
    }
    assert order_settings(args(4, 8, 1), None, Order(4, 1))["begun_by_processes"] == 1


def test_what_cannot_be_kept_is_refused_with_what_can() -> None:
    with pytest.raises(ValueError, match=r"12 rows") as caught:
        kept_accumulation(args(4, 1, 6), manifest(rows=12, world_size=3))
    assert "with 6 processes it can be [1, 2]" in str(caught.value)
    assert "there can be [1, 3] processes" in str(caught.value)
    with pytest.raises(ValueError, match=r"it can be nothing") as caught:
        kept_accumulation(args(5, 1, 7), manifest(rows=12, world_size=3))
    assert "there can be no number of processes" in str(caught.value)


def test_the_order_is_that_of_the_beginning() -> None:
    assert run_order(args(4, 2, 1), None) == Order(grouped=4, filled=1)
    assert run_order(args(4, 2, 3), None) == Order(grouped=12, filled=12)
    assert run_order(args(4, 2, 1), manifest(24, 3, order=(12, 12))) == Order(12, 12)


def rows_of_steps(world_size: int, accumulation: int, batching: str, order: Order) -> list[set]:
    """The rows of each optimizer step of two epochs."""
    lengths = np.random.default_rng(0).integers(5, 60, size=37)
    steps = []
    for epoch in (0, 1):
        micro: list[set] = []
        for rank in range(world_size):
            batches = Batches(
                lengths,
                batching=batching,
                batch_size=2,
                max_length=60,
                seed=3,
                rank=rank,
                world_size=world_size,
                order=order,
            )
            batches.set_epoch(epoch)
            micro += [set(enumerate_rows(batch)) for batch in batches]
        count = len(micro) // world_size
        by_step = [set().union(*micro[step::count]) for step in range(count)]
        steps += [
            set().union(*by_step[first : first + accumulation])
            for first in range(0, count, accumulation)
        ]
    return steps


def enumerate_rows(batch: Any) -> list[int]:
    return [row for unit in batch for row in (unit if isinstance(unit, tuple) else (unit,))]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_fewer_processes_draw_the_rows_of_the_beginning(batching: str) -> None:
    order = Order.of(2, 4)
    expected = rows_of_steps(4, 1, batching, order)
    assert rows_of_steps(2, 2, batching, order) == expected
    assert rows_of_steps(1, 4, batching, order) == expected
    if batching != "shuffled":
        assert rows_of_steps(1, 4, batching, Order.of(2, 1)) != expected


@pytest.mark.parametrize("batching", BATCHINGS)
def test_more_processes_differ_in_the_last_step_of_an_epoch_alone(batching: str) -> None:
    order = Order.of(2, 1)
    expected = rows_of_steps(1, 4, batching, order)
    found = rows_of_steps(4, 1, batching, order)
    ends = {len(expected) // 2 - 1, len(expected) - 1}
    for step, (rows, others) in enumerate(zip(found, expected, strict=True)):
        assert rows >= others if step in ends else rows == others
