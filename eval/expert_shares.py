"""From the counts of single answers to each expert's share of a task; needs no torch.

Counts are those of ``eval.expert_load``: by part and kind of token ``tokens``, and by layer's
number ``chosen``, how many of them each expert is given.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from eval.store import Record

ALL = "all"  # tokens of every kind


def expert_shares(counts: Sequence[Record]) -> Record:
    """By part the ``load`` of its experts: their shares of the (token, expert) pairs.

    ``answers`` are those counted, ``tokens`` their tokens by kind. A layer has its number and a
    load by kind, and of all tokens, unless it takes none. ``least_load`` and ``most_load`` are of
    the least and the most used expert, means over the layers, as the training report has them;
    1/E is even.
    """
    return {
        part: {"answers": sum(part in of_one for of_one in counts)} | _shares(kinds)
        for part, kinds in added([{}, *counts]).items()
    }


def added(values: Sequence[Any]) -> Any:
    """The sum: of numbers, of lists by place, of mappings by each name that any of them has."""
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: added([v[name] for v in values if name in v]) for name in names}
    if isinstance(first, list):
        return [sum(column) for column in zip(*values, strict=True)]
    return sum(values)


def _shares(kinds: Record) -> Record:
    every = added(list(kinds.values()))
    layers: list[Record] = [
        {
            "layer": int(number),
            "kinds": {
                kind: {"load": [count / sum(chosen) for count in chosen]}
                for kind, found in {**kinds, ALL: every}.items()
                if sum(chosen := found["chosen"][number])
            },
        }
        for number in sorted(every["chosen"], key=int)
    ]
    loads = [layer["kinds"][ALL]["load"] for layer in layers if layer["kinds"]]
    means = [fmean(shares) for shares in zip(*loads, strict=True)]
    (num_experts,) = {len(chosen) for chosen in every["chosen"].values()}
    return {
        "num_experts": num_experts,
        "tokens": {kind: found["tokens"] for kind, found in kinds.items()},
        "least_load": min(means, default=None),
        "most_load": max(means, default=None),
        "layers": layers,
    }
