"""How a checkpoint is run where not as it was saved: another routing, another decoding."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What a command asks for; None keeps what the checkpoint has, parts None are all."""

    router: str | None = None
    router_options: dict[str, Any] | None = None
    top_k: int | None = None
    router_parts: tuple[str, ...] | None = None
    self_contrast: dict[str, Any] | None = None  # options of SelfContrast; {}: its defaults
    num_beams: int | None = None
    sampling: dict[str, Any] | None = None  # options of Sampling; {}: its defaults
    rank_options: bool | None = None

    def __bool__(self) -> bool:
        return self != Inference()


def describe(changes: Mapping[str, Any]) -> Iterator[str]:
    """A phrase for each thing that ``eval.decoding.changes`` found; none where all is as saved."""
    for part, routing in sorted(changes.get("routing", {}).items()):
        options = json.dumps(routing["router_options"], sort_keys=True)
        yield f"{part} routed by {routing['router']} {options}, top {routing['top_k']}"
    if "self_contrast" in changes:
        options = json.dumps(changes["self_contrast"], sort_keys=True)
        yield f"answers decoded by self-contrast {options}; losses are without it"
    if "num_beams" in changes:
        yield f"answers by beam search, {changes['num_beams']} beams"
    if "sampling" in changes:
        yield f"answers drawn by sampling {json.dumps(changes['sampling'], sort_keys=True)}"
    if "rank_options" in changes:
        yield "of options the one of the lowest loss is taken for the answer"


def mark(changes: Mapping[str, Any]) -> str:
    """What stands behind a task's name in a table."""
    marks = {
        "routing": " (OTHER ROUTING)",
        "self_contrast": " (SELF-CONTRAST)",
        "num_beams": " (BEAMS)",
        "sampling": " (SAMPLED)",
        "rank_options": " (OPTIONS RANKED)",
    }
    return "".join(text for name, text in marks.items() if name in changes)
