"""The files that two benchmarks' own judges read: their rows, each with the model's answer.

Both are put together from the rows that the task was read from, after the benchmark's published
scripts, and were not put to a judge:

hallusionbench  ``HallusionBench_result.json`` of evaluation.py (github.com/tianyi-lab/
                HallusionBench): a list of rows with ``model_prediction``. The task leaves out the
                questions without a picture and so does the list; the script pairs them with the
                others, and versions that tell language errors from visual ones stop without them
mathvista       the output of generate_response.py (github.com/lupantech/MathVista), for
                extract_answer.py and calculate_score.py: rows by pid, with ``query`` and
                ``response``. The hub's ``precision`` 1.0 is written as 1: calculate_score.py
                rounds by it and takes a failure for a wrong answer
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.readers.fields import field, label, read_json
from eval.readers.layouts import Found, find_layout
from eval.readers.tables import Row, read_table
from eval.store import Record
from eval.tasks import hallusionbench, mathvista

HALLUSION_COLUMNS = (
    *(*hallusionbench.PLACE, "visual_input", "question"),
    *("gt_answer", "gt_answer_details"),
)
HALLUSION_OPTIONAL = ("sample_note", "filename")


def hallusionbench_rows(samples: Sequence[Record], root: Path) -> list[Row]:
    """The questions that were asked, in the file's order, with ``model_prediction``."""
    found = find_layout(root, "hallusionbench", hallusionbench.LAYOUTS)
    answers = {sample["id"]: sample["text"].strip() for sample in samples}
    rows = []
    for where, row in _hallusion_rows(found):
        name = "_".join(label(where, row, part) for part in hallusionbench.PLACE)
        if name in answers:
            field(where, row, "gt_answer_details")  # what the judge compares with
            rows.append({**row, "model_prediction": answers.pop(name)})
    _none_left(answers, found)
    return rows


def mathvista_rows(samples: Sequence[Record], root: Path) -> dict[str, Row]:
    """Every problem by its pid, as asked and answered."""
    found = find_layout(root, "mathvista", mathvista.LAYOUTS)
    asked = {sample["id"]: sample for sample in samples}
    rows = {}
    for where, row in _mathvista_rows(found):
        pid = label(where, row, "pid")
        if pid not in asked:
            raise ValueError(f"{where}: pid {pid} has no answer in the run")
        sample = asked.pop(pid)
        said = {"query": sample["prompt"], "response": sample["text"].strip()}
        rows[pid] = {**row, "precision": mathvista.precision(row), **said}
    _none_left(asked, found)
    return rows


def _hallusion_rows(found: Found) -> Iterator[tuple[str, Row]]:
    if "tables" in found.files:
        yield from read_table(found.files["tables"], HALLUSION_COLUMNS, HALLUSION_OPTIONAL)
        return
    path = found.one("questions")
    for number, row in enumerate(read_json(path), start=1):
        where = f"{path}:row {number}"
        if field(where, row, "filename"):
            yield where, row


def _mathvista_rows(found: Found) -> Iterator[tuple[str, Row]]:
    if "tables" in found.files:
        yield from read_table(found.files["tables"], mathvista.COLUMNS, ("image",))
        return
    path = found.one("questions")
    for pid, row in read_json(path).items():
        yield f"{path}:{pid}", row


def _none_left(answers: Mapping[str, object], found: Found) -> None:
    if answers:
        path = next(iter(found.files.values()))[0]
        raise ValueError(
            f"{path} lacks {min(answers)}, which was answered: is it the file that was asked from?"
        )
