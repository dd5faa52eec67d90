"""Evaluate a checkpoint; the verbs stand in ``eval/__init__.py``.

Exit status: 0 done, 1 a task lacks replies or samples, 2 the command cannot be carried out. Once a
run has begun, an error ends it with a traceback; the same command takes it up again. Started by
torchrun, ranks share the questions, and rank 0 waits for the others, scores and prints.
"""

import argparse
import sys
import time
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
from eval.store import Record, claim, read_results, recorded
from eval.task import Task, load_tasks


class Prepared(NamedTuple):
    """What a run will ask, checked before the first weight is read."""

    fingerprint: str
    changes: Record  # in routing and decoding, from the checkpoint as it is saved
    tasks: list[Task]
    requests: dict[str, list[Request]]
    todo: list[Task]  # those of the tasks with something to ask


def main(argv: list[str] | None = None) -> int:
    """Carry out one verb and give the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    verbs = {"run": _run, "score": _score, "report": _report, "submit": _submit}
    return verbs[args.verb](args, parser)


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
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


def _score(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        results = score_run(args.run, args.data_root)
    except ValueError as error:
        parser.error(str(error))
    print(table(results))
    return 0 if succeeded(results) else 1


def _report(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        if args.training and args.output is None:
            raise ValueError("--training goes into a written report: say where by --output OUTDIR")
        lines = _tables(args.runs) if args.output is None else _written(args)
        if args.wandb:
            from eval.wandb_tables import log_tables

            lines += map(str, log_tables(args.runs, args.data_root))
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(lines))
    return 0


def _tables(runs: list[Path]) -> list[str]:
    """Each run's table, and above them, where there are several, the runs side by side."""
    tables = [table(read_results(run)) for run in runs]
    if len(runs) == 1:
        return tables
    from eval.comparison import comparison
    from eval.rows import read
    from llava_compete.report.markdown import to_markdown

    parts = [f"## {run}\n\n{text}\n" for run, text in zip(runs, tables, strict=True)]
    return [to_markdown(list(comparison([read(run) for run in runs]))), *parts]


def _written(args: argparse.Namespace) -> list[str]:
    from eval.training_log import headlines
    from eval.training_report import write_report

    written = write_report(args.runs, args.training, args.output, args.data_root)
    lines = [line for directory in args.training for line in headlines(directory)]
    return [*lines, *map(str, written)]


def _submit(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from eval.submissions import write_submissions

    try:
        written = write_submissions(args.run, args.data_root)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(map(str, written)))
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
