"""Tensors of another layout under our names, or ours under another's: rules, strictly applied.

Every key of the source has to be used by a rule or dropped by one that says why, and every tensor
that is wanted has to come out in its shape. Nothing is guessed: the report names each key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

SHOWN = 8  # keys of a kind that an error names


def same(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def thirds(tensor: Tensor) -> list[Tensor]:
    """Queries', keys' and values' rows of one map, each with memory of its own."""
    return [part.clone() for part in tensor.chunk(3)]


@dataclass(frozen=True)
class Rule:
    r"""A key that ``pattern`` matches whole becomes ``target``, a template with \1 or \g<name>."""

    pattern: str
    target: str
    convert: Callable[[Tensor], Tensor] = same


@dataclass(frozen=True)
class Join:
    """The keys that get the same target become one tensor; the group ``part`` tells them apart.

    ``order`` names the parts that must be there, in the order in which ``join`` takes them;
    without it parts are numbers from 0 on, none left out.
    """

    pattern: str  # with a group (?P<part>...)
    target: str
    order: tuple[str, ...] | None = None
    join: Callable[[list[Tensor]], Tensor] = torch.cat


@dataclass(frozen=True)
class Split:
    """A key becomes several tensors: ``split`` gives as many as there are ``targets``."""

    pattern: str
    targets: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Drop:
    """A key that ``pattern`` matches whole is left out, because of ``why``."""

    pattern: str
    why: str


AnyRule = Rule | Join | Split | Drop


@dataclass(frozen=True)
class Report:
    """What became of every key."""

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)  # source key: our keys
    dropped: dict[str, str] = field(default_factory=dict)  # source key: why
    unused: list[str] = field(default_factory=list)  # source keys that no rule knows
    missing: list[str] = field(default_factory=list)  # wanted keys that no source key gave
    faults: list[str] = field(default_factory=list)  # parts left out, shapes that differ

    def lines(self) -> list[str]:
        """One line a key."""
        return [
            *(f"used     {key} -> {', '.join(to)}" for key, to in sorted(self.used.items())),
            *(f"dropped  {key}: {why}" for key, why in sorted(self.dropped.items())),
            *(f"unused   {key}" for key in sorted(self.unused)),
            *(f"missing  {key}" for key in sorted(self.missing)),
            *(f"fault    {fault}" for fault in self.faults),
        ]

    def summary(self) -> str:
        """Counts, and the first keys of each kind that is a fault."""
        text = f"{len(self.used)} keys used, {len(self.dropped)} dropped"
        for name in ("unused", "missing", "faults"):
            if found := sorted(getattr(self, name)):
                more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                text += f"; {len(found)} {name}: {', '.join(found[:SHOWN])}{more}"
        return text


class Mapped(NamedTuple):
    """Tensors under their new names, and the report of how they came there."""

    tensors: dict[str, Tensor]
    report: Report


def map_keys(
    state: Mapping[str, Tensor],
    rules: Sequence[AnyRule],
    wanted: Mapping[str, Sequence[int]] | None = None,
    *,
    source: str = "the checkpoint",
) -> Mapped:
    """``state`` under the names that the first matching rule of each key gives.

    ``wanted`` maps every tensor that has to come out, and no other, to its shape. ValueError where
    a key is matched by no rule, where two keys claim one name, where a part of a Join is not there,
    and where what comes out is not what is wanted; it names the keys.
    """
    compiled = [(rule, re.compile(rule.pattern)) for rule in rules]
    report = Report()
    tensors: dict[str, Tensor] = {}
    parts: dict[tuple[Join, str], dict[str, str]] = {}  # of a Join and its target: part: key
    for key in state:
        matches = ((rule, match) for rule, regex in compiled if (match := regex.fullmatch(key)))
        rule, match = next(matches, (None, None))
        if rule is None or match is None:
            report.unused.append(key)
        elif isinstance(rule, Drop):
            report.dropped[key] = rule.why
        elif isinstance(rule, Join):
            target = match.expand(rule.target)
            other = parts.setdefault((rule, target), {}).setdefault(match["part"], key)
            if other != key:
                report.faults.append(f"{target}: {other} and {key} are the same part of it")
        elif isinstance(rule, Rule):
            _put(tensors, report, [key], match.expand(rule.target), rule.convert(state[key]))
        else:
            pieces = rule.split(state[key])
            for template, piece in zip(rule.targets, pieces, strict=True):
                _put(tensors, report, [key], match.expand(template), piece)
    for (rule, target), keys in parts.items():
        order = rule.order or tuple(str(number) for number in range(len(keys)))
        if set(order) != set(keys):
            report.faults.append(f"{target} needs parts {', '.join(order)}, has {sorted(keys)}")
            continue
        ordered = [keys[part] for part in order]
        _put(tensors, report, ordered, target, rule.join([state[key] for key in ordered]))
    if wanted is not None:
        _compare(tensors, report, wanted)
    if report.unused or report.missing or report.faults:
        raise ValueError(f"{source} does not fit its layout: {report.summary()}")
    return Mapped(tensors, report)


def _put(
    tensors: dict[str, Tensor], report: Report, keys: Sequence[str], target: str, value: Tensor
) -> None:
    if target in tensors:
        report.faults.append(f"{target} is claimed by several keys, {', '.join(keys)} among them")
    tensors[target] = value
    for key in keys:
        report.used[key] = (*report.used.get(key, ()), target)


def _compare(
    tensors: Mapping[str, Tensor], report: Report, wanted: Mapping[str, Sequence[int]]
) -> None:
    report.missing.extend(key for key in wanted if key not in tensors)
    for key, value in tensors.items():
        if key not in wanted:
            report.faults.append(f"{key} is no tensor of the model")
        elif tuple(value.shape) != tuple(wanted[key]):
            shapes = f"{list(value.shape)}, the model has {list(wanted[key])}"
            report.faults.append(f"{key} is {shapes}")
