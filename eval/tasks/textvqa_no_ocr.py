"""TextVQA without the OCR line in any profile; everything else as in ``eval.tasks.textvqa``."""

from pathlib import Path

from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Task
from eval.tasks.textvqa import SHOWS_OCR, task_of


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read what ``textvqa`` reads."""
    of_profile("textvqa_no_ocr", profile, SHOWS_OCR)
    return task_of(root, profile, "textvqa_no_ocr", shows_ocr=False)
