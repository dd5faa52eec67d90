"""A scoring rule as a value, for benchmarks that tools score differently.

A module whose tools disagree has ``RULES``: a ``Rule`` for each name. The names are profiles,
``llava15`` (the official script, or what LLaVA-1.5 runs), ``lmms`` (lmms-eval) and ``libmoe``
(LibMoE's fork of it), or say what differs, as ``official_unanimous`` does. A task takes one with
``pick``. What each name means stands in the module's docstring.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from eval.task import Metric, Sample, Score, Scored


class Rule(NamedTuple):
    """How one answer is scored, and how scores are summed up."""

    score: Callable[[str, Sample], Score]
    aggregate: Callable[[Sequence[Scored]], dict[str, Metric]]


def pick(rules: Mapping[str, Rule], name: str) -> Rule:
    """The rule called ``name``; ValueError with the names there are."""
    if name not in rules:
        raise ValueError(f"no rule is called {name!r}; there are {', '.join(sorted(rules))}")
    return rules[name]
