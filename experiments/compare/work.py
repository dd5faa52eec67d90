"""The jobs that are not done yet, in this process or in several at once."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import torch

from eval.store import Record
from experiments.compare.job import run_job
from experiments.compare.settings import Comparison, Job


def run_all(comparison: Comparison, workers: int, say: Callable[[str], None]) -> None:
    """Every job once; what is done already is not done again. The first failure ends all."""
    todo = [job for job in comparison.jobs() if not comparison.file(job).is_file()]
    progress = _Progress(len(comparison.jobs()), len(todo), say)
    if workers == 1:
        for job in todo:
            progress.tell(run_job(comparison, job))
        return
    with _pool(workers) as pool:
        futures = [pool.submit(run_job, comparison, job) for job in todo]
        try:
            for future in as_completed(futures):
                progress.tell(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those under way come to their end
            raise


def results(comparison: Comparison) -> dict[Job, Record]:
    """Every job's numbers, in the order of the jobs."""
    return {job: json.loads(comparison.file(job).read_text()) for job in comparison.jobs()}


def begin_worker(threads: int) -> None:
    """What a worker does first: take its share of the cores, and see to it that it ends in time.

    Of a command that is killed the workers would go on, with the cores and memory they hold.
    """
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker"
    parent.join()
    os._exit(1)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    # The environment is what a new process reads before it imports anything: OpenMP its number of
    # threads, tqdm whether to draw bars, of which several at once would be a mess.
    values = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        # Spawned: a forked process inherits locks of OpenMP's threads, and cannot use a GPU.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, begin_worker, (threads,)) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Progress:
    """A line for each job that ends, with what is left."""

    def __init__(self, jobs: int, todo: int, say: Callable[[str], None]) -> None:
        self.jobs, self.left, self.say = jobs, todo, say
        self.todo, self.begun = todo, time.perf_counter()
        if todo < jobs:
            say(f"{jobs - todo} of {jobs} jobs are done before")

    def tell(self, record: Record) -> None:
        self.left -= 1
        passed = time.perf_counter() - self.begun
        left = passed / (self.todo - self.left) * self.left
        self.say(
            f"[{self.jobs - self.left}/{self.jobs}] {record['router']}, seed {record['seed']}: "
            f"held-out loss {record['loss']:.3f}; training {record['train_seconds']:.0f} s, "
            f"scoring {record['score_seconds']:.0f} s; {left / 60:.0f} min left"
        )
