"""Evaluate a checkpoint; the verbs stand in ``eval/__init__.py``.

Exit status: 0 done, 1 a task lacks replies or samples, 2 the command cannot be carried out. Once a
run has begun, an error ends it with a traceback; the same command takes it up again. Started by
torchrun, ranks share the questions, and rank 0 waits for the others, scores and prints.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from eval.inference import Inference
from eval.options import as_asked
from eval.plan import Request, plan
from eval.predict import Model, predict, unanswered
from eval.ranks import Rank, wait_for_others
from eval.report import table
from eval.score import score_run, succeeded
from eval.store import Record, claim, read_results, recorded
from eval.task import DEFAULT_PROFILE, TASKS, Task, load_tasks


class Prepared(NamedTuple):
    """What a run will ask, checked before the first weight is read."""

    fingerprint: str
    changes: Record  # in routing and decoding, from the checkpoint as it is saved
    tasks: list[Task]
    requests: dict[str, list[Request]]
    todo: list[Task]  # those of the tasks with something to ask


def main(argv: list[str] | None = None) -> int:
    """Carry out one verb and give the exit status."""
    parser = _parser()
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
    print(table(results))
    return 0 if succeeded(results) else 1


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
        from eval.model import changes as find_changes

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)

    run = verbs.add_parser("run", allow_abbrev=False, help="ask a checkpoint, then score")
    run.add_argument("--checkpoint", type=Path, required=True, help="checkpoint directory")
    run.add_argument("--tasks", type=_names, required=True, help=f"of {','.join(TASKS)}")
    run.add_argument("--data_root", type=Path, required=True, help="where the questions lie")
    run.add_argument("--out", type=Path, required=True, help="run directory; resumed if it exists")
    run.add_argument(
        "--profile", default=DEFAULT_PROFILE, help="whose prompts and rules: llava15, lmms, libmoe"
    )
    run.add_argument("--batch_size", type=_positive, default=32, help="questions, at most")
    run.add_argument(
        "--batch_tokens",
        type=_positive,
        default=16384,
        help="tokens of a batch, at most: padding, pictures and replies counted",
    )
    run.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    run.add_argument("--limit", type=_positive, help="ask only so many samples of each task")
    run.add_argument("--seed", type=int, default=0, help="of the shuffled pictures")
    run.add_argument(
        "--shuffled_control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask again with another sample's picture",
    )
    run.add_argument("--workers", type=_positive, default=2, help="threads that decode pictures")
    run.add_argument(
        "--patience",
        type=_positive,
        default=600,
        help="seconds without a reply until the other ranks are given up",
    )
    run.add_argument(
        "--expert_load", action="store_true", help="count the tokens that each expert is given"
    )
    _add_inference(run)
    score = verbs.add_parser("score", allow_abbrev=False, help="score stored replies, no model")
    score.add_argument("run", type=Path)
    score.add_argument("--data_root", type=Path, help="where the questions lie now, if moved")

    submit = verbs.add_parser("submit", allow_abbrev=False, help="write files for servers, judges")
    submit.add_argument("run", type=Path)
    submit.add_argument("--data_root", type=Path, help="where the questions lie now, if moved")

    report = verbs.add_parser("report", allow_abbrev=False, help="print the tables of runs")
    report.add_argument("runs", type=Path, nargs="+")
    report.add_argument(
        "--output", type=Path, help="write report.html, report.md and scores.csv there instead"
    )
    report.add_argument(
        "--training", type=Path, nargs="+", default=[], metavar="DIR", help="of llava-compete train"
    )
    report.add_argument(
        "--wandb", action="store_true", help="also as wandb tables; on disk without an account"
    )
    report.add_argument("--data_root", type=Path, help="where the pictures lie now, if moved")
    return parser


def _add_inference(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("another routing or decoding, the weights as they are")
    group.add_argument("--router", help="instead of the checkpoint's, by its name in ROUTERS")
    group.add_argument(
        "--router_options", type=_object, metavar="JSON", help='such as {"scope": "token"}'
    )
    group.add_argument("--top_k", type=_positive, help="experts of a token")
    group.add_argument(
        "--router_parts", nargs="+", metavar="PART", help="where; default: all with experts"
    )
    group.add_argument(
        "--self_contrast",
        type=_object,
        metavar="JSON",
        help='decode by self-contrast (SCMoE); {} or other values than {"alpha": 0.1, '
        '"beta": 0.5, "weak_rank": 2}',
    )
    group.add_argument("--num_beams", type=_positive, help="beam search instead of greedy decoding")
    group.add_argument(
        "--sampling",
        type=_object,
        metavar="JSON",
        help='draw the answers; {} or other values than {"temperature": 1.0, "top_p": 1.0, '
        '"top_k": 0, "seed": 0}',
    )
    group.add_argument(
        "--rank_options",
        action="store_true",
        help="answer choice questions by the option's letter of the lowest loss, not in words",
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} must be a JSON object, as {{"name": 1}}')
    return value


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a task twice")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
