"""Ask a checkpoint, then score; restartable, on any number of ranks."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eval.arguments import make_parser
from eval.inference import Inference
from eval.options import as_asked
from eval.plan import Request, plan
from eval.predict import Model, predict, unanswered
from eval.ranks import Rank, wait_for_others
from eval.report import table
from eval.score import score_run, succeeded
from eval.store import Record, claim, recorded
from eval.task import Task, load_tasks


class Prepared(NamedTuple):
    """What a run will ask, checked before the first weight is read."""

    fingerprint: str
    changes: Record  # in routing and decoding, from the checkpoint as it is saved
    tasks: list[Task]
    requests: dict[str, list[Request]]
    todo: list[Task]  # those of the tasks with something to ask


def main(argv: Sequence[str]) -> int:
    """Ask what is not answered yet, then, on rank 0, score and print."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        rank = Rank.of_environment()
        prepared = _prepare(args)
        model = _load(args, rank) if prepared.todo else None
    except ValueError as error:
        parser.error(str(error))
    if rank.number > 0:
        _ask(args, prepared, model, rank)
        return 0  # rank 0 tells how the run has ended
    arguments = _arguments(args) | {"ranks": rank.world_size}
    if prepared.changes:
        arguments["changes"] = prepared.changes
    if args.expert_load:
        arguments["expert_load"] = True
    with recorded(args.out, arguments, prepared.fingerprint) as record:
        record["tasks"] |= _ask(args, prepared, model, rank)
        record["missing"] = wait_for_others(lambda: _missing(prepared, args.out), args.patience)
        results = score_run(args.out)
        record["status"] = "success" if succeeded(results) else "incomplete"
    print(table(results))
    return 0 if record["status"] == "success" else 1


def _prepare(args: argparse.Namespace) -> Prepared:
    from eval.fingerprint import fingerprint

    tasks = load_tasks(args.tasks, args.data_root, args.profile)
    changes: Record = {}
    if inference := _inference(args):
        from eval.decoding import changes as find_changes

        changes = find_changes(args.checkpoint, inference)
    tasks = [as_asked(task, changes) for task in tasks]
    mark = fingerprint(args.checkpoint, args.dtype, args.out / "fingerprint.json", changes)
    claim(args.out, mark)
    requests = {
        task.name: plan(
            task,
            mark,
            shuffled_control=args.shuffled_control,
            seed=args.seed,
            limit=args.limit,
            root=args.data_root,
            expert_load=args.expert_load,
        )
        for task in tasks
    }
    if args.expert_load:
        from eval.expert_load import check_countable

        check_countable(args.checkpoint, inference, requests)
    todo = [task for task in tasks if unanswered(task, requests[task.name], args.out)]
    return Prepared(mark, changes, tasks, requests, todo)


def _inference(args: argparse.Namespace) -> Inference:
    return Inference(
        router=args.router,
        router_options=args.router_options,
        top_k=args.top_k,
        router_parts=args.router_parts and tuple(args.router_parts),
        self_contrast=args.self_contrast,
        num_beams=args.num_beams,
        sampling=args.sampling,
        rank_options=args.rank_options or None,
    )


def _load(args: argparse.Namespace, rank: Rank) -> Model:
    from eval.model import LlavaCompete

    return LlavaCompete.load(
        args.checkpoint,
        args.dtype,
        _inference(args),
        rank.local,
        args.workers,
        args.expert_load,
    )


def _ask(args: argparse.Namespace, prepared: Prepared, model: Model | None, rank: Rank) -> Record:
    """Ask this rank's share; what each task took."""
    notes: Record = {}
    for task in prepared.todo:
        assert model is not None
        start, before = time.perf_counter(), model.work()
        asked = predict(
            model,
            task,
            prepared.requests[task.name],
            args.out,
            batch_size=args.batch_size,
            batch_tokens=args.batch_tokens,
            rank=rank,
        )
        seconds = round(time.perf_counter() - start, 3)
        work = {name: count - before[name] for name, count in model.work().items()}
        notes[task.name] = {"asked": asked, "seconds": seconds} | work
    return notes


def _missing(prepared: Prepared, run_dir: Path) -> int:
    """Replies that no rank has given yet."""
    return sum(
        len(unanswered(task, prepared.requests[task.name], run_dir)) for task in prepared.todo
    )


def _arguments(args: argparse.Namespace) -> Record:
    return {
        "checkpoint": str(args.checkpoint.resolve()),
        "tasks": args.tasks,
        "profile": args.profile,
        "data_root": str(args.data_root.resolve()),
        "batch_size": args.batch_size,
        "batch_tokens": args.batch_tokens,
        "dtype": args.dtype,
        "limit": args.limit,
        "seed": args.seed,
        "shuffled_control": args.shuffled_control,
    }
