"""A whole training step, this library's against one as it is usually written, on the same rows.

python -m benchmarks step --threads 1
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.head import head
from benchmarks.measure import CLOCKS, Laps, interleaved, machine, paired, summary, table, write
from benchmarks.memory import account
from benchmarks.plain_step import PlainModel
from benchmarks.step_subjects import SUBJECTS, Subject, draw_rows, packed, padded
from llava_compete import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import CompetitionSchedule

RATE, CAP = 0.07, 3  # of the competition, as in the recipes
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # of the two ways' language losses
KINDS = ("router", "competition")
MIB = 2**20


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks step",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=(*SUBJECTS, "head"), default=["quickstart", "wide", "head"])
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=1)
    add("--clock", choices=CLOCKS, default="wall", help="processor: on a busy machine, one thread")
    add("--device", type=torch.device, default=torch.device("cpu"))
    add("--output", type=Path, default=Path("outputs/benchmarks/step.json"))
    add("--trace", type=Path, help="folder for a torch.profiler trace and table of each step")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    Laps.clock = staticmethod(CLOCKS[args.clock])
    results: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "clock": args.clock}
    for name in args.only:
        measured = head if name == "head" else _subject
        results[name] = measured(name, args)
        write(args.output, results)
    print(f"\n{args.output}: {results['machine']}")


class Step:
    """Called: zero gradients, forward, backward, clipping, optimizer; its seconds."""

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], device: torch.device, *, fused: bool
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.loss, self.device = loss, device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=fused or None)

    def work(self) -> None:
        """Without a clock."""
        self.optimizer.zero_grad()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def __call__(self) -> float:
        laps = Laps(self.device)
        laps.mark()
        self.work()
        laps.mark()
        return laps.seconds()[0]


class Pair:
    """Ours and the plain model of a subject on one batch, with the same weights."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self.ours: Model = subject.build(device)
        self.plain = PlainModel(self.ours)
        rows = draw_rows(subject, self.ours, seed=0)
        self.padded = _on(device, padded(rows))
        self.packed = _on(device, packed(rows, subject.max_length))
        self.tokens = int(self.padded["attention_mask"].sum())
        self.answers = int((self.padded["labels"] >= 0).sum())
        self.competing = min(CAP, len(self.plain.blocks))
        self.steps = {
            "plain": Step(self.plain, lambda: self.plain(self.padded)[0], device, fused=False),
            "ours": Step(self.ours, lambda: self.ours(**self.packed).loss, device, fused=True),
        }

    def compete(self, kind: str) -> None:
        """In both, the first layers of the language model that may, or none."""
        count = self.competing if kind == "competition" else 0
        self.plain.compete([place < count for place in range(len(self.plain.blocks))])
        self.ours.set_competing([place < count for place in range(len(self.ours.competitors()))])

    def check(self) -> dict[str, float]:
        """Both ways' language losses in each kind of step; they do the same work."""
        found = {}
        for kind in KINDS:
            self.compete(kind)
            with torch.no_grad():
                plain = self.plain(self.padded)[1].item()
                ours = self.ours(**self.packed).losses["language"].item()
            assert abs(plain - ours) < TOLERANCE[self.ours.dtype] * plain, (kind, plain, ours)
            found[kind] = ours
        return found

    def measure(self, name: str, kind: str) -> Callable[[], float]:
        """Seconds of a step."""

        def run() -> float:
            self.compete(kind)
            return self.steps[name]()

        return run


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) for name, value in batch.items()}


def _subject(name: str, args: argparse.Namespace) -> dict[str, Any]:
    pair = Pair(SUBJECTS[name], args.device)
    found: dict[str, Any] = {
        "losses": pair.check(),
        "tokens": pair.tokens,
        "answers": pair.answers,
        "positions": {
            "plain": pair.padded["input_ids"].numel(),
            "ours": pair.packed["input_ids"].numel(),
        },
        "competing": pair.competing,
        "layers": len(pair.ours.competitors()),
    }
    runs = {(who, kind): pair.measure(who, kind) for kind in KINDS for who in pair.steps}
    seconds = interleaved({f"{who}, {kind}": run for (who, kind), run in runs.items()}, args.rounds)
    found["seconds"] = {run: summary(values) for run, values in seconds.items()}
    found |= _ratios(pair, seconds)
    found["peak"] = {}
    for run, (who, kind) in zip(seconds, runs, strict=True):
        pair.compete(kind)
        pair.steps[who].optimizer.zero_grad()  # what is freed in the step would be counted
        found["peak"][run] = account(pair.steps[who].work, args.device).most
    if args.trace:
        _trace(pair, name, args.trace)
    _show(name, found)
    return found


def _ratios(pair: Pair, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Real tokens per second at the schedule's share of competition, and what that share costs."""
    layers = len(pair.ours.competitors())
    CompetitionSchedule(layers, rate=RATE, max_layers=CAP, warmup_steps=0, seed=0)  # it is possible
    each = RATE * layers / pair.competing  # of the cost of a step in which so many compete
    mixed = {
        who: [
            (1 - each) * router + each * competition
            for router, competition in zip(
                seconds[f"{who}, router"], seconds[f"{who}, competition"], strict=True
            )
        ]
        for who in pair.steps
    }
    return {
        "tokens_per_second": {
            who: summary([pair.tokens / value for value in values]) for who, values in mixed.items()
        },
        "ratio": paired(mixed["plain"], mixed["ours"]),
        "ratio_by_kind": {
            kind: paired(seconds[f"plain, {kind}"], seconds[f"ours, {kind}"]) for kind in KINDS
        },
        "over_smoe": {who: paired(mixed[who], seconds[f"{who}, router"]) for who in pair.steps},
    }


def _show(name: str, found: dict[str, Any]) -> None:
    rows: list[list[Any]] = [[name, "plain", "ours", "ratio"]]
    for kind in KINDS:
        times = [found["seconds"][f"{who}, {kind}"]["median"] for who in ("plain", "ours")]
        rows.append([f"seconds, {kind} step", *times, found["ratio_by_kind"][kind]["median"]])
    speeds = [found["tokens_per_second"][who]["median"] for who in ("plain", "ours")]
    rows.append(["real tokens/s, amortised", *speeds, found["ratio"]["median"]])
    more = [found["over_smoe"][who]["median"] for who in ("plain", "ours")]
    rows.append(["amortised / router step", *more, more[0] / more[1]])
    for kind in KINDS:
        peaks = [found["peak"][f"{who}, {kind}"] / MIB for who in ("plain", "ours")]
        rows.append([f"peak MiB, {kind} step", *peaks, peaks[0] / peaks[1]])
    print(f"\n{table(rows)}")
    print(
        f"{found['tokens']} real tokens, {found['answers']} of answers; positions "
        f"{found['positions']}; {found['competing']} of {found['layers']} layers compete; ratio "
        f"{found['ratio']['least']:.2f} to {found['ratio']['most']:.2f}"
    )


def _trace(pair: Pair, name: str, folder: Path) -> None:
    """trace.json for a browser and table.txt of the operations, of a router step of each."""
    folder.mkdir(parents=True, exist_ok=True)
    pair.compete("router")
    for who, step in pair.steps.items():
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step.work()
        profiler.export_chrome_trace(str(folder / f"{name}-{who}.json"))
        operations = profiler.key_averages().table("self_cpu_time_total", row_limit=30)
        (folder / f"{name}-{who}.txt").write_text(operations)
