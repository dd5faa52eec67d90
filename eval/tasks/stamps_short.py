"""Short answers about held-out clip-art pictures of the quickstart, in two groups.

``kind`` asks for the class of the thing, which the training pictures teach; ``name`` asks what it
is. A held-out thing's name is rarely one that was trained, so its exact match says little; the loss
of the reference with the right picture, against that with a wrong one, tells whether the model
looks.
"""

from pathlib import Path

from eval.metrics import exact_match
from eval.readers import read_questions
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Task

LAYOUT = "  DATA_ROOT/heldout/short.jsonl\n  DATA_ROOT/pictures/*.png"
GROUPS = ("kind", "name")


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/heldout/short.jsonl``; every row's group is kind or name."""
    of_profile("stamps_short", profile, {"llava15": None})
    samples = read_questions(root, ["heldout/short.jsonl"], LAYOUT)
    for sample in samples:
        if sample.group not in GROUPS:
            raise ValueError(
                f"short.jsonl: group={sample.group!r} of {sample.id} must be kind or name"
            )
    return Task(
        name="stamps_short",
        version=1,
        description="what kind of thing is it, and what is it?",
        samples=samples,
        score=exact_match.score,
        aggregate=exact_match.aggregate,
        headline="exact_match",
        max_new_tokens=16,
        loss_groups=("name",),
    )
