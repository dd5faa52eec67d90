"""Memory of a piece of work, by the account of torch's allocators and by the system's."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


class Account(NamedTuple):
    """Bytes that a piece of work took from torch's allocator, above what was there before."""

    most: int  # at once
    left: int  # when it was done, its result alive
    result: Any


def account(work: Callable[[], Any], device: torch.device) -> Account:
    """Runs ``work`` under the allocator's account.

    On CPU that is the profiler's, which has every allocation and release through torch and not
    what oneDNN takes for itself. On CUDA a block's rounding is counted too.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        torch.cuda.synchronize(device)
        most, left = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return Account(most - before, left - before, result)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    now = most = 0
    for size in allocations(profiler):
        now += size
        most = max(most, now)
    return Account(most, now, result)


def allocations(profiler: profile) -> list[int]:
    """Bytes of each allocation, and of each release with a minus, in their order."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [event.nbytes() for event in events]


def peak_of_process(work: Callable[[], Any]) -> int:
    """Bytes by which this process grew at most while ``work`` ran, by Linux's account.

    Memory that the C library keeps after a release hides a growth: run it where
    ``MALLOC_MMAP_THRESHOLD_`` is small, so that large blocks go back at once.
    """
    gc.collect()
    before = _kilobytes("VmRSS")
    CLEAR_REFS.write_text("5")  # the peak begins anew
    result = work()
    most = _kilobytes("VmHWM")
    del result
    return 1024 * (most - before)


def _kilobytes(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])
