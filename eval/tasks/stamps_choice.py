"""Which of several captions fits a held-out clip-art picture of the quickstart?

Score: accuracy of the letter, by LLaVA's ScienceQA rule.
"""

from pathlib import Path

from eval.metrics import choice
from eval.readers import read_questions
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUT = "  DATA_ROOT/heldout/choice.jsonl\n  DATA_ROOT/pictures/*.png"


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/heldout/choice.jsonl``; its answers are letters, its options the captions."""
    of_profile("stamps_choice", profile, {"llava15": None})
    samples = read_questions(root, ["heldout/choice.jsonl"], LAYOUT)
    for sample in samples:
        _check(sample)
    return Task(
        name="stamps_choice",
        version=1,
        description="which caption fits the picture?",
        samples=samples,
        score=choice.score,
        aggregate=choice.aggregate,
        headline="accuracy",
        max_new_tokens=8,
    )


def _check(sample: Sample) -> None:
    letters, answer = choice.offered(sample), sample.references[0]
    if len(letters) < 2 or len(sample.options) > len(choice.LETTERS):
        raise ValueError(
            f"choice.jsonl: {sample.id} has {len(sample.options)} options; 2 to 5 are needed"
        )
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"choice.jsonl: answer={answer!r} of {sample.id} must be one of {letters}")
