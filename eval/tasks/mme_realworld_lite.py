"""MME-RealWorld-lite, 1,919 questions in English: see ``eval.tasks.mme_realworld``."""

from pathlib import Path

from eval.task import DEFAULT_PROFILE, Task
from eval.tasks import mme_realworld

HEAD = "The choices are listed below:"
INSTRUCTION = (
    "Select the best answer to the above multiple-choice question based on the image. Respond with "
    "only the letter (A, B, C, D, or E) of the correct option."
)
END = "The best answer is:"
LMMS = mme_realworld.Wording(HEAD, INSTRUCTION, f"{END} ")
LITE = mme_realworld.Part(
    name="mme_realworld_lite",
    folder="mme_realworld_lite",
    file="MME-RealWorld-Lite.json",
    wordings={
        "llava15": mme_realworld.Wording(f"{HEAD} ", INSTRUCTION, END),
        "lmms": LMMS,
        "libmoe": LMMS,
    },
    expected_n=1919,
    description="photographs of high resolution, by letter",
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mme_realworld_lite``, else ``root/hub/mme_realworld_lite``."""
    return mme_realworld.load(LITE, root, profile)
