"""MMBench in English, split dev: see ``eval.tasks.mmbench``.

Row counts are those of the hub's cards: 4,377 of the release that LLaVA asks, 4,329 of the later
one in the hub copy. LibMoE's scores fit 1,164 questions.
"""

from pathlib import Path

from eval.readers.prompts import LETTER
from eval.task import DEFAULT_PROFILE, Task
from eval.tasks import mmbench

ENGLISH = mmbench.Language(
    name="mmbench_en",
    tsv="mmbench_dev_20230712.tsv",
    rows={"official files": 4377, "hub copy": 4329},
    instruction=LETTER,
    lmms_instruction=LETTER,
    announcement="There are several options:",
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mmbench/mmbench_dev_20230712.tsv``, else ``root/hub/mmbench_en``."""
    return mmbench.load(ENGLISH, root, profile)
