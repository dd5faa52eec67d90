"""Choice by likelihood: the answer is the option that the model gives the lowest loss.

A loss is the mean over the option's tokens and the turn's end, in nats a token, of the option as
the assistant's answer. ``Task.ranked`` says what of an option that is: its letter below the task's
own prompt, or its text. A sample without options, as MMMU's open questions are, is asked in words.

A loss in float32 differs by some 1e-5 with what else stands in the batch. So that this decides
nothing, ``eval.model`` runs one question at a time, its prompt once and all options behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.metrics.letters import offered
from eval.task import Sample, Task

DIGITS = 5  # losses that agree in so many are alike
DECODING = ("num_beams", "sampling", "self_contrast")


def as_asked(task: Task, changes: Mapping[str, Any]) -> Task:
    """The task as a run with these ``changes`` asks it: its letters ranked, if they say so.

    A task that ranks texts stays as it is. ValueError where a task has nothing to rank, where its
    rule reads no letters, and where a way of decoding is asked for beside ranking.
    """
    if "rank_options" in changes and not task.ranked:
        ending = "the option whose letter has the lowest loss"
        task = replace(task, ranked="letters", description=f"{task.description}; {ending}")
        if not task.unscored and not _reads_letters(task):
            raise ValueError(
                f"task {task.name}: its rule finds no option's letter right in any sample, so "
                f"ranking letters cannot score; ask it without --rank_options"
            )
    found = [name for name in DECODING if name in changes]
    if task.ranked and found:
        raise ValueError(
            f"task {task.name} takes the option of the lowest loss, which is not decoded: leave "
            f"out --{found[0]}, or the task"
        )
    return task


def candidates(task: Task, sample: Sample) -> tuple[str, ...]:
    """What is put to the model as the sample's answer, in turn; () where it is asked in words."""
    if task.ranked == "texts":
        return sample.options
    return tuple(offered(sample)) if task.ranked == "letters" else ()


def reply_of(sample: Sample, losses: Sequence[float]) -> dict[str, Any]:
    """What is stored: the letter of the lowest of ``losses``, which are those of the options.

    Of losses that are alike the first is taken, and ``tie`` is true.
    """
    alike = [round(loss, DIGITS) for loss in losses]
    return {
        "text": offered(sample)[alike.index(min(alike))],
        "losses": list(losses),
        "tie": alike.count(min(alike)) > 1,
        "tokens": 0,  # of an answer that the model would have had to write
        "finished": True,
    }


def _reads_letters(task: Task) -> bool:
    return any(
        value
        for sample in task.samples
        for letter in offered(sample)
        for value in task.score(letter, sample).values.values()
    )
