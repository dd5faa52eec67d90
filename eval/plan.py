"""From a task to the requests that one run makes, each with a key that says what was asked.

A run has one or two conditions: every sample with its own picture, and, as a control, every sample
with another sample's picture. A model that looks does worse on the second.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eval.digests import picture_digests
from eval.options import candidates
from eval.task import Sample, Task

RIGHT, SHUFFLED = "right", "shuffled"


@dataclass(frozen=True)
class Request:
    """One thing to ask: an answer in words, the losses of options, or that of the reference.

    ``sample`` carries the pictures that are shown. ``key`` hashes everything the reply depends on.
    """

    key: str
    condition: str
    wants: Literal["answer", "options", "loss"]
    sample: Sample


def plan(
    task: Task,
    fingerprint: str,
    *,
    shuffled_control: bool,
    seed: int = 0,
    limit: int | None = None,
    root: Path | None = None,
    expert_load: bool = False,
) -> list[Request]:
    """Every request of a run, in the order of the samples, one condition after the other.

    ``limit`` keeps that many samples, drawn by ``seed``, with the very requests of the whole run,
    so that the whole run can go on from a limited one. Below ``root``, the data root, it is kept
    what the pictures hold; without it each is read. With ``expert_load`` an answer comes with its
    experts' counts.
    """
    digests = picture_digests((i for sample in task.samples for i in sample.images), root)
    conditions = {RIGHT: task.samples}
    if shuffled_control:
        try:
            conditions[SHUFFLED] = shuffle_pictures(task.samples, digests, seed)
        except ValueError as error:
            raise ValueError(f"{task.name}: {error}") from error
    kept = {sample.id for sample in _drawn(task.samples, limit, seed)}
    requests = []
    for condition, samples in conditions.items():
        for sample in samples:
            if sample.id in kept:
                requests += _requests(task, fingerprint, condition, sample, digests, expert_load)
    return requests


def shuffle_pictures(
    samples: Sequence[Sample], digests: Mapping[Path, str], seed: int
) -> tuple[Sample, ...]:
    """The samples that have a picture, each with the picture of another; none sees its own.

    The pictures are permuted, so each is shown as often as before. Samples are lined up picture by
    picture, the pictures in a seeded order, and each takes the picture that stands as many places
    on as the commonest picture has samples, which is past the last sample of its own. The pictures
    of one sample count as one and stay together.
    """
    by_picture: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.images:
            by_picture[tuple(digests[image] for image in sample.images)].append(sample)
    order = sorted(by_picture)
    random.Random(seed).shuffle(order)
    line = [sample for shown in order for sample in by_picture[shown]]
    step = max((len(group) for group in by_picture.values()), default=0)
    if 2 * step > len(line):
        raise ValueError(
            f"{step} of {len(line)} samples show one and the same picture, so they cannot all get "
            f"another: turn the control off with --no-shuffled_control"
        )
    images = {sample.id: line[(i + step) % len(line)].images for i, sample in enumerate(line)}
    return tuple(replace(s, images=images[s.id]) for s in samples if s.id in images)


def _requests(
    task: Task,
    fingerprint: str,
    condition: str,
    sample: Sample,
    digests: Mapping[Path, str],
    expert_load: bool,
) -> list[Request]:
    answer: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "do_sample": False}
    if expert_load:
        answer["expert_load"] = True
    base = {
        "task": [task.name, task.version],
        "id": sample.id,
        "prompt": sample.prompt,
        "images": [digests[image] for image in sample.images],
        "fingerprint": fingerprint,
    }
    if options := candidates(task, sample):
        requests = [Request(_key({**base, "options": options}), condition, "options", sample)]
    else:
        requests = [Request(_key({**base, "answer": answer}), condition, "answer", sample)]
    if sample.group in task.loss_groups:
        key = _key({**base, "loss": sample.references[0]})
        requests.append(Request(key, condition, "loss", sample))
    return requests


def _key(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _drawn(samples: Sequence[Sample], limit: int | None, seed: int) -> Sequence[Sample]:
    if limit is None or limit >= len(samples):
        return samples
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    # Not every n-th: in a file whose groups alternate that would keep one group alone.
    return random.Random(f"{seed}:limit").sample(samples, limit)
