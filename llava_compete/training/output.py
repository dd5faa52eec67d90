"""The output directory of a training: what lies there, and where a run goes on from."""

import re
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_compete.checkpoint import read_config, refuse_non_empty
from llava_compete.training.skipped import SKIPPED

RECIPE = "recipe.yaml"  # the resolved recipe, next to the checkpoint
DATA = "data.json"  # what was trained on, by source
OWN_FILES = (RECIPE, DATA, SKIPPED)
HANG = re.compile(r"hang-rank-\d+\.txt")  # the watchdog's
CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def refuse_results(output_dir: Path, *, keep_own: bool) -> None:
    """ValueError where the directory holds something that this run did not leave.

    With ``keep_own``, OWN_FILES and torn checkpoints of an earlier start are no reason.
    """
    names = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    own = {
        name
        for name in names
        if name in OWN_FILES or CHECKPOINT.fullmatch(name) or HANG.fullmatch(name)
    }
    if not (keep_own and names == own):
        refuse_non_empty(output_dir)


def find_resume(resume: str, output_dir: Path) -> str | None:
    """Where to go on from: None, or a complete checkpoint directory."""
    if resume == "never":
        return None
    if resume != "auto":
        if not _complete(Path(resume)):
            raise ValueError(f"resume={resume} is not a complete checkpoint of the trainer")
        return resume
    found = [
        (int(match[1]), path)
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := CHECKPOINT.fullmatch(path.name)) and _complete(path)
    ]
    return str(max(found)[1]) if found else None


def _complete(path: Path) -> bool:
    """trainer_state.json is what the trainer writes last."""
    if not (path / "trainer_state.json").is_file():
        return False
    try:
        read_config(path)
    except ValueError:  # a rotation that was killed may leave a checkpoint without weights
        return False
    return True
