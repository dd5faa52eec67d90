"""The output directory of a training: what lies there, and where a run goes on from."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_compete.checkpoint import refuse_non_empty
from llava_compete.training.finite import NON_FINITE
from llava_compete.training.manifest import check_files, read_manifest
from llava_compete.training.skipped import SKIPPED
from llava_compete.training.states import refuse_foreign_pickles

logger = logging.getLogger(__name__)
T = TypeVar("T")

RECIPE = "recipe.yaml"  # the resolved recipe, next to the checkpoint
DATA = "data.json"  # what was trained on, by source
OWN_FILES = (RECIPE, DATA, SKIPPED, NON_FINITE)
HANG = re.compile(r"hang-rank-\d+\.txt")  # the watchdog's
CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def refuse_results(output_dir: Path, *, keep_own: bool) -> None:
    """ValueError where the directory holds something that this run did not leave.

    With ``keep_own``, OWN_FILES and damaged checkpoints of an earlier start are no reason.
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
    """Where to go on from: None, or a checkpoint directory whose manifest holds.

    ``auto`` takes the newest and says what it passes over; ValueError says why a named one does
    not hold.
    """
    if resume == "never":
        return None
    if resume != "auto":
        try:
            _check_resumable(Path(resume))
        except ValueError as error:
            raise ValueError(f"resume={resume}: {error}") from error
        return resume
    found = {
        int(match[1]): path
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := CHECKPOINT.fullmatch(path.name))
    }
    for step in sorted(found, reverse=True):
        try:
            _check_resumable(found[step])
        except ValueError as error:
            logger.warning("resume=auto passes over %s: %s", found[step].name, error)
        else:
            return str(found[step])
    return None


def _check_resumable(path: Path) -> None:
    """ValueError says what a checkpoint lacks, or which file holds what a training never writes."""
    manifest = read_manifest(path)
    if not manifest.resumable:
        raise ValueError(f"{path} has neither optimizer nor random states (save_only_model)")
    check_files(path, manifest)
    refuse_foreign_pickles(path)


def agreed(args: TrainingArguments, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank; a ValueError of rank 0 is one of all ranks."""
    answer: list[tuple[T | None, str | None]] = [(None, None)]
    if args.process_index == 0:
        try:
            answer = [(decide(), None)]
        except ValueError as error:
            answer = [(None, str(error))]
    [(value, failure)] = broadcast_object_list(answer)
    if failure is not None:
        raise ValueError(failure)
    return cast(T, value)
