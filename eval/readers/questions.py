"""Question files to samples, refused early and by line when something is off.

A question file is JSON lines: ``{"id", "image", "question", "answer", "options"?, "group"?}``.
``question`` is the full prompt, ``image`` a path relative to the data root or null.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.readers.fields import in_utf8
from eval.readers.layouts import all_there, find
from eval.task import Sample


def read_questions(root: Path, candidates: Iterable[str], layout: str) -> tuple[Sample, ...]:
    """The samples of the first question file found; ``layout`` tells a user what belongs where."""
    path = find(root, candidates, layout)
    samples: dict[str, Sample] = {}
    for where, row in read_jsonl(path):
        sample = _sample(where, row, root)
        if sample.id in samples:
            raise ValueError(f"{where}: the id {sample.id!r} is used twice; ids must be unique")
        samples[sample.id] = sample
    pictures = {image for sample in samples.values() for image in sample.images}
    all_there(pictures, layout)
    return tuple(samples.values())


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON lines file with the place it stands at, ``file:line``."""
    with in_utf8(path), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not a line of JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a JSON object was expected, not {type(row).__name__}")
            yield where, row


def _sample(where: str, row: dict[str, Any], root: Path) -> Sample:
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{where}: options={options!r} must be a list of texts")
    return Sample(
        id=_text(where, row, "id"),
        prompt=_text(where, row, "question"),
        references=(_text(where, row, "answer"),),
        images=_pictures(where, row, root),
        options=tuple(options),
        group=_text(where, row, "group") if "group" in row else "",
    )


def _text(where: str, row: dict[str, Any], name: str) -> str:
    if name not in row:
        raise ValueError(f"{where}: {name!r} is missing; the row has {sorted(row)}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name}={value!r} must be a text that is not empty")
    return value


def _pictures(where: str, row: dict[str, Any], root: Path) -> tuple[Path, ...]:
    if "image" in row and row["image"] is None:
        return ()
    name = _text(where, row, "image")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{where}: image={name!r} must stay inside the data root {root}")
    return (path,)
