"""InfographicVQA (arXiv:2104.12756), val: questions about infographics.

Prompt: form S in all profiles. Score: ANLS. Read as ``eval.tasks.docvqa`` says.
"""

from pathlib import Path

from eval.readers.layouts import hub
from eval.task import DEFAULT_PROFILE, Task
from eval.tasks.docvqa import VAL, task_of

INFOVQA = VAL._replace(
    name="infovqa",
    description="questions about infographics, val",
    layouts={
        "official files": {
            "rows": (
                "infovqa/infographicsVQA_val_v1.0*.json",
                "infovqa/*/infographicsVQA_val_v1.0*.json",
            )
        },
        "hub copy": {"tables": hub("infovqa", "InfographicVQA/validation-*", "validation-*")},
    },
    image="image_local_name",
    folders=("infovqa/images", "infovqa/infographicsvqa_images"),
    expected_n=2801,
    tokens={"llava15": 128, "lmms": 32, "libmoe": 32},
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/infovqa`` or ``root/hub/infovqa``."""
    return task_of(root, profile, INFOVQA)
