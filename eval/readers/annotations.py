"""Rows of JSON annotation files of any size, and the samples that come of them.

A row comes with ``file:row N``, the place that ``eval.readers.fields`` names where it is not right.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ijson

from eval.metrics.rules import Rule
from eval.readers.fields import field
from eval.task import Sample

SHOWN = 3  # of many ids


class Way(NamedTuple):
    """How a profile scores the answers to short questions, and how long they may be."""

    rule: Rule
    max_new_tokens: int


def read_rows(path: Path, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list that stands under ``key``, or is the whole file, one at a time."""
    with path.open("rb") as source:
        items = ijson.items(source, f"{key}.item" if key else "item", use_float=True)
        yield from _objects(path, items, f"a list of objects under {key!r}" if key else "a list")


def read_values(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The objects of a JSON object, each with its place and its name there."""
    with path.open("rb") as source:
        pairs = ijson.kvitems(source, "", use_float=True)
        for where, row in _objects(path, ({"name": n, "row": r} for n, r in pairs), "an object"):
            if not isinstance(row["row"], dict):
                raise ValueError(f"{where}: {row['name']!r} must name an object")
            yield where, row["name"], row["row"]


def texts(where: str, row: Mapping[str, Any], name: str, key: str = "") -> tuple[str, ...]:
    """A list of texts; with ``key``, a list of objects that each have a text under it."""
    values = field(where, row, name)
    if isinstance(values, list) and key:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: {name}={row[name]!r} must be a list of texts")
    return tuple(values)


def in_order(task: str, samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The samples by their ids, so that each layout gives one order; an id used twice is refused.

    A number comes before one with more digits.
    """
    line = sorted(samples, key=lambda sample: (len(sample.id), sample.id))
    for one, other in pairwise(line):
        if one.id == other.id:
            raise ValueError(f"{task}: the id {one.id!r} is used twice; ids must be unique")
    return tuple(line)


def hold_same(task: str, files: Mapping[str, Collection[str]]) -> None:
    """ValueError unless both files of ``files``, name -> ids, have the same ids."""
    (one, ids), (other, other_ids) = files.items()
    alone, missing = set(ids) - set(other_ids), set(other_ids) - set(ids)
    if alone or missing:
        raise ValueError(
            f"{task}: {one} and {other} do not join: {len(alone)} ids are in the first alone "
            f"{sorted(alone)[:SHOWN]}, {len(missing)} in the second alone "
            f"{sorted(missing)[:SHOWN]}; are both of the same release and split?"
        )


def _objects(path: Path, items: Iterator[Any], wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        first = next(items, None)
        if first is None:
            raise ValueError(f"{path}: no rows; {wanted} was expected")
        for number, row in enumerate(chain([first], items), start=1):
            where = f"{path}:row {number}"
            if not isinstance(row, dict):
                raise ValueError(f"{where}: an object was expected, not {type(row).__name__}")
            yield where, row
    except ijson.JSONError as error:
        raise ValueError(f"{path}: not a JSON file, {wanted} was expected ({error})") from error
