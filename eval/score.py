"""From stored replies to metrics; needs the question files but no model and no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from eval.expert_shares import expert_shares
from eval.metrics.statistics import mean, paired_difference
from eval.options import as_asked
from eval.plan import RIGHT, SHUFFLED, Request, plan
from eval.store import Record, read_predictions, read_run, write_json, write_jsonl
from eval.task import ANSWER_LOSS, Metric, Score, Scored, Task, load_task

SCHEMA_VERSION = 1
DIGITS = 5  # a loss differs in its last bits with the batch size; what is written should not


class Row(NamedTuple):
    """A sample that was answered: the reply as it was stored and what the task made of it."""

    condition: str
    reply: Record
    scored: Scored


def score_run(run_dir: Path, data_root: Path | None = None) -> Record:
    """Score every task of the last run in ``run_dir``; writes and returns its results.

    ``data_root`` is where the data lies now, if it was moved since the run. ValueError where
    ``run.json`` names no profile.
    """
    run = read_run(run_dir)
    arguments = run["arguments"]
    if "profile" not in arguments:
        raise ValueError(
            f"{run_dir / 'run.json'} names no profile: the command that made the run, given again, "
            f"writes it and keeps the replies"
        )
    root = data_root or Path(arguments["data_root"])
    results: Record = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": run["fingerprint"],
        "limit": arguments["limit"],
        "profile": arguments["profile"],
        "tasks": {},
    }
    if "changes" in arguments:  # absent where the checkpoint ran as it was saved
        results["changes"] = arguments["changes"]
    for name in arguments["tasks"]:
        task = load_task(name, root, arguments["profile"])
        task = as_asked(task, arguments.get("changes", {}))
        requests = plan(
            task,
            run["fingerprint"],
            shuffled_control=arguments["shuffled_control"],
            seed=arguments["seed"],
            limit=arguments["limit"],
            root=root,
            expert_load="expert_load" in arguments,
        )
        replies = read_predictions(run_dir, name)
        rows = score_samples(task, requests, replies)
        lines = [_rounded(sample_line(row, root)) for row in rows]
        write_jsonl(run_dir / "samples" / f"{name}.jsonl", lines)
        missing = sum(request.key not in replies for request in requests)
        results["tasks"][name] = _rounded(
            task_results(task, rows, missing=missing, limited=arguments["limit"] is not None)
        )
    write_json(run_dir / "results.json", results)
    return results


def succeeded(results: Record) -> bool:
    """Whether every task has each reply it asked for and, unless limited, all of its samples."""
    limited = results["limit"] is not None
    return all(
        task["complete"] or (limited and task["missing"] == 0) for task in results["tasks"].values()
    )


def score_samples(
    task: Task, requests: Sequence[Request], replies: Mapping[str, Record]
) -> list[Row]:
    """The answered samples in the order of the requests, a measured loss among their values."""
    losses = {
        (request.condition, request.sample.id): replies[request.key]["loss"]
        for request in requests
        if request.wants == "loss" and request.key in replies
    }
    rows = []
    for request in requests:
        if request.wants == "loss" or request.key not in replies:
            continue
        reply = replies[request.key]
        score = _with_reply_flags(task.score(reply["text"].strip(), request.sample), reply)
        place = (request.condition, request.sample.id)
        if place in losses:
            score = replace(score, values=score.values | {ANSWER_LOSS: losses[place]})
        rows.append(Row(request.condition, reply, Scored(request.sample, score)))
    return rows


def task_results(task: Task, rows: Sequence[Row], *, missing: int, limited: bool) -> Record:
    """Metrics of each condition and, where there are two, what the right picture is worth."""
    expected = len(task.samples) if task.expected_n is None else task.expected_n
    by_condition: dict[str, list[Scored]] = {}
    for row in rows:
        by_condition.setdefault(row.condition, []).append(row.scored)
    results: Record = {
        "version": task.version,
        "description": task.description,
        "headline": task.headline,
        "n": len(by_condition.get(RIGHT, ())),
        "expected_n": expected,
        "missing": missing,
        "complete": not limited and missing == 0 and len(task.samples) == expected,
        "conditions": {
            condition: {
                "n": len(scored),
                "flags": dict(Counter(flag for row in scored for flag in row.score.flags)),
                "metrics": _metrics(task, scored),
            }
            for condition, scored in by_condition.items()
        },
        "differences": {},
    }
    if task.unscored:
        results |= {"score": None, "unscored": task.unscored}
    counted = [
        row.reply["experts"] for row in rows if row.condition == RIGHT and "experts" in row.reply
    ]
    if counted:
        results["experts"] = expert_shares(counted)
    if by_condition.keys() >= {RIGHT, SHUFFLED}:
        results["differences"] = _differences(by_condition[RIGHT], by_condition[SHUFFLED])
    return results


def _metrics(task: Task, rows: Sequence[Scored]) -> dict[str, Record]:
    metrics = {name: asdict(m) | {"groups": {}} for name, m in _aggregate(task, rows).items()}
    for group, members in _groups(rows).items():
        for name, metric in _aggregate(task, members).items():
            metrics[name]["groups"][group] = asdict(metric)
    return metrics


def _aggregate(task: Task, rows: Sequence[Scored]) -> dict[str, Metric]:
    metrics = task.aggregate(rows)
    losses = [row.score.values[ANSWER_LOSS] for row in rows if ANSWER_LOSS in row.score.values]
    if losses:
        loss = mean(losses)
        metrics[ANSWER_LOSS] = Metric(loss.value, loss.n, loss.stderr, unit="nats")
    return metrics


def _differences(right: Sequence[Scored], shuffled: Sequence[Scored]) -> dict[str, Record]:
    # Only a metric that is a mean over samples has a value of each sample to pair.
    control = {row.sample.id: row.score.values for row in shuffled}
    names = sorted({name for row in right for name in row.score.values})
    groups = _groups(right)
    differences: dict[str, Record] = {}
    for name in names:
        overall = _difference(name, right, control)
        if overall is None:
            continue
        differences[name] = overall | {"groups": {}}
        for group, members in groups.items():
            part = _difference(name, members, control)
            if part is not None:
                differences[name]["groups"][group] = part
    return differences


def _difference(
    name: str, right: Sequence[Scored], control: Mapping[str, Mapping[str, float]]
) -> Record | None:
    pairs = [
        (row.score.values[name], control[row.sample.id][name])
        for row in right
        if name in row.score.values and name in control.get(row.sample.id, {})
    ]
    if not pairs:
        return None
    estimate = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    errors = estimate.value / estimate.stderr if estimate.stderr else None
    return {**estimate._asdict(), "in_stderrs": errors}


def _groups(rows: Sequence[Scored]) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(row.sample.group, []).append(row)
    return groups if len(groups) > 1 else {}  # the only group is the whole


def _with_reply_flags(score: Score, reply: Record) -> Score:
    flags = list(score.flags)
    if not reply["finished"]:
        flags.append("truncated")
    if not reply["text"].strip():
        flags.append("empty")
    if "beyond" in reply:
        flags.append("beyond_positions")
    if reply.get("tie", False):  # only options have one
        flags.append("tie")
    return replace(score, flags=tuple(flags))


def sample_line(row: Row, root: Path) -> Record:
    """A row as ``samples/TASK.jsonl`` has it, with its pictures' paths below ``root``."""
    sample, score = row.scored
    losses = {"losses": row.reply["losses"]} if "losses" in row.reply else {}
    return losses | {
        "id": sample.id,
        "condition": row.condition,
        "group": sample.group,
        "images": [image.relative_to(root).as_posix() for image in sample.images],
        "prompt": sample.prompt,
        "references": sample.references,
        "text": row.reply["text"],
        "tokens": row.reply["tokens"],
        "finished": row.reply["finished"],
        "parsed": score.parsed,
        "values": score.values,
        "flags": score.flags,
    }


def _rounded(value: Any) -> Any:
    """The same with every number in it rounded to DIGITS."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
