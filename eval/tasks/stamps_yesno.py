"""Yes or no about held-out clip-art pictures of the quickstart.  Score: accuracy, POPE's parsing.

Half of the questions show a thing under its own caption, half under another one's of its class.
"""

from dataclasses import replace
from pathlib import Path

from eval.metrics import yes_no
from eval.readers import read_questions
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUT = "  DATA_ROOT/heldout/yesno.jsonl\n  DATA_ROOT/pictures/*.png"


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/heldout/yesno.jsonl``; the answers there are yes or no in any case."""
    of_profile("stamps_yesno", profile, {"llava15": None})
    return Task(
        name="stamps_yesno",
        version=1,
        description="does the caption fit the picture?",
        samples=tuple(map(_checked, read_questions(root, ["heldout/yesno.jsonl"], LAYOUT))),
        score=yes_no.score,
        aggregate=yes_no.aggregate,
        headline="accuracy",
        max_new_tokens=8,
    )


def _checked(sample: Sample) -> Sample:
    answer = sample.references[0].lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"yesno.jsonl: answer={answer!r} of {sample.id} must be yes or no")
    return replace(sample, references=(answer,))
