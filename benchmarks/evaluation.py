"""Evaluation: LLaVA's loop, question by question, against this harness.

python -m benchmarks evaluation --checkpoint outputs/quickstart/finetuned
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.measure import interleaved, machine, summary, table, write
from benchmarks.one_by_one import OneByOne
from eval.model import LlavaCompete
from eval.plan import plan
from eval.predict import predict
from eval.store import read_predictions
from eval.task import Sample, Score, Task
from llava_compete.checkpoint import load

FORM = "{}\nAnswer the question using a single word or phrase."
THINGS = ("dog", "red car", "dining table", "person", "bird on a branch", "traffic light")
QUESTIONS = {
    "six questions a picture": [f"Is there a {thing} in the image?" for thing in THINGS],
    "one question a picture": ["What is the name of the thing in the image?"],
}
MAX_NEW_TOKENS = 128  # as LLaVA's scripts have it


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("outputs/quickstart/finetuned"))
    add("--pictures", type=Path, help="folder of pictures; the quickstart's if not given")
    add("--output", type=Path, default=Path("outputs/benchmarks/evaluation.json"))
    add("--samples", type=int, default=120, help="questions of a set")
    add("--batch_size", type=int, default=64)
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    folder = args.pictures or Path.home() / ".cache/llava_compete/quickstart/pictures"
    tasks = make_tasks(folder, args.samples)
    model, processor = load(args.checkpoint, dtype=args.dtype)
    model.eval()
    results: dict[str, Any] = {"machine": machine()}
    for task in tasks:
        results[task.name] = compare(model, processor, task, args.rounds, args.batch_size)
        write(args.output, results)
    print(table(_rows({task.name: results[task.name] for task in tasks})))
    print(f"\n{args.output}: {args.samples} questions, {args.dtype}, {results['machine']}")


def make_tasks(folder: Path, samples: int) -> list[Task]:
    """A set of so many questions for each of QUESTIONS, over the folder's first pictures."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".png", ".jpg"))
    if len(paths) < samples:
        raise ValueError(
            f"{folder} has {len(paths)} .png and .jpg pictures, {samples} are asked for: run "
            f"scripts/quickstart.sh first, name another folder by --pictures or lower --samples"
        )
    return [_task(name, questions, paths, samples) for name, questions in QUESTIONS.items()]


def _task(name: str, questions: Sequence[str], paths: Sequence[Path], samples: int) -> Task:
    asked = [(path, question) for path in paths for question in questions][:samples]
    return Task(
        name=name,
        version=1,
        description="made for a measurement of speed",
        samples=tuple(
            Sample(str(number), FORM.format(question), ("",), (path,))
            for number, (path, question) in enumerate(asked)
        ),
        score=lambda answer, sample: Score(answer, {}),
        aggregate=lambda scored: {},
        headline="",
        max_new_tokens=MAX_NEW_TOKENS,
    )


@dataclass
class Work:
    """What went through the model: pictures through the tower, tokens through the decoder.

    Padding counts: it costs what a token does.
    """

    pictures: int = 0
    prompt_tokens: int = 0  # positions of forwards over more than one position a row
    new_tokens: int = 0


@dataclass
class Way:
    """One way of asking: ``ask`` gives the texts by sample id."""

    ask: Callable[[], Mapping[str, str]]
    model: nn.Module
    work: Work = field(default_factory=Work)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> float:
        """Samples per second; leaves ``texts`` and ``work`` of this call."""
        with _counting(self.model) as self.work:
            begin = time.perf_counter()
            self.texts = self.ask()
            return len(self.texts) / (time.perf_counter() - begin)


def compare(model: Any, processor: Any, task: Task, rounds: int, batch_size: int) -> dict[str, Any]:
    """Samples per second of both ways, their work and ratio; ValueError where texts differ."""
    ways = {
        "one by one": Way(lambda: _one_by_one(model, processor, task), model),
        "ours": Way(lambda: _ours(model, processor, task, batch_size), model),
    }
    speeds = interleaved(ways, rounds)
    plain, ours = ways["one by one"], ways["ours"]
    if differing := [i for i, text in plain.texts.items() if ours.texts.get(i) != text]:
        i = differing[0]
        raise ValueError(
            f"{len(differing)} of {len(plain.texts)} answers differ, so the speeds do not compare: "
            f"sample {i} of {task.name} says {plain.texts[i]!r} alone, {ours.texts.get(i)!r} here"
        )
    found: dict[str, Any] = {
        name: summary(values) | vars(ways[name].work) for name, values in speeds.items()
    }
    found["ratio"] = found["ours"]["median"] / found["one by one"]["median"]
    return found


def _one_by_one(model: Any, processor: Any, task: Task) -> dict[str, str]:
    loop = OneByOne(model, processor)
    return {sample.id: loop.answer(sample, task.max_new_tokens) for sample in task.samples}


def _ours(model: Any, processor: Any, task: Task, batch_size: int) -> dict[str, str]:
    harness = LlavaCompete(model, processor)  # a new one each time: it keeps pictures
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        requests = plan(task, "speed", shuffled_control=False)
        predict(harness, task, requests, run, batch_size=batch_size)
        replies = read_predictions(run, task.name).values()
    return {reply["id"]: reply["text"] for reply in replies}


@contextmanager
def _counting(model: Any) -> Iterator[Work]:
    work = Work()

    def pictures(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        work.pictures += len(given[0])

    def tokens(module: nn.Module, given: tuple[Tensor, ...], named: Mapping[str, Any]) -> None:
        embeddings = named.get("inputs_embeds")
        shape = (named["input_ids"] if embeddings is None else embeddings).shape
        if shape[1] > 1:
            work.prompt_tokens += shape[0] * shape[1]
        else:
            work.new_tokens += shape[0]

    decoder = model.language_model.get_decoder()
    hooks = [
        model.vision.register_forward_pre_hook(pictures),
        decoder.register_forward_pre_hook(tokens, with_kwargs=True),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def _rows(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    heads = ("", "samples/s", "pictures seen", "prompt tokens", "new tokens", "times faster")
    rows: list[tuple[Any, ...]] = [heads]
    for task, of_task in found.items():
        for way in ("one by one", "ours"):
            w = of_task[way]
            times = of_task["ratio"] if way == "ours" else 1.0
            rows.append(
                (
                    f"{task}, {way}",
                    w["median"],
                    w["pictures"],
                    w["prompt_tokens"],
                    w["new_tokens"],
                    times,
                )
            )
    return rows
