"""DocVQA (arXiv:2007.00398), test: answers for the server of its challenge, which scores them.

Read and asked as ``eval.tasks.docvqa`` says.
"""

from pathlib import Path

from eval.readers.layouts import hub
from eval.task import DEFAULT_PROFILE, Task
from eval.tasks.docvqa import VAL, task_of

TEST = VAL._replace(
    name="docvqa_test",
    description="questions about pages of documents, test",
    layouts={
        "official files": {"rows": ("docvqa/test_v1.0*.json", "docvqa/*/test_v1.0*.json")},
        "hub copy": {"tables": hub("docvqa", "DocVQA/test-*", "test-*")},
    },
    folders=("docvqa/documents", "docvqa/spdocvqa_images", "docvqa/test/documents"),
    expected_n=5188,
    answered=False,
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/docvqa`` or ``root/hub/docvqa``; no sample has references."""
    return task_of(root, profile, TEST)
