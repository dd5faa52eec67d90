"""MM-Vet: open questions whose answers GPT-4 judges; they are kept, and no score is given here.

Prompt: form N; lmms and libmoe ask for reasoning first. ``eval.submissions`` writes the file that
MM-Vet's evaluator takes. ``references`` hold the benchmark's answer, ``meta`` its capabilities.
"""

from collections.abc import Iterator
from pathlib import Path

from eval import unscored
from eval.readers import read_jsonl
from eval.readers.fields import field, inside, label, read_json, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions, MM-Vet's answers": {
        "questions": ("mm-vet/llava-mm-vet.jsonl",),
        "answers": ("mm-vet/mm-vet.json",),
    },
    "hub copy": {"tables": hub("mm_vet", "test-*", "*")},
}
PICTURES = "  DATA_ROOT/mm-vet/images/v1_*"
COLUMNS = ("question_id", "question", "answer", "capability", "image")
REASON = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    "following question: \n\n"
)
BEFORE = {"llava15": "", "lmms": REASON, "libmoe": REASON}
JUDGE = "GPT-4 judges the answers: submissions/mm_vet.json is for MM-Vet's evaluator"


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mm-vet`` or ``root/hub/mm_vet``; ``group`` names the capabilities."""
    before = of_profile("mm_vet", profile, BEFORE)
    found = find_layout(root, "mm_vet", LAYOUTS)
    read = _hub if "tables" in found.files else _llava
    return Task(
        name="mm_vet",
        version=1,
        description=f"open questions, for a judge ({found.layout})",
        samples=tuple(read(root, found, before)),
        score=unscored.score,
        aggregate=unscored.aggregate,
        headline="gpt_score",
        max_new_tokens=1024,
        expected_n=218,
        unscored=JUDGE,
    )


def _llava(root: Path, found: Found, before: str) -> Iterator[Sample]:
    path = found.one("answers")
    answers = read_json(path)
    samples = []
    for where, row in read_jsonl(found.one("questions")):
        name = f"v1_{label(where, row, 'question_id')}"
        if name not in answers:
            raise ValueError(f"{where}: {path} has no {name}")
        there = f"{path}: {name}"
        asked = answers[name]
        image = inside(there, root / "mm-vet/images", text(there, asked, "imagename"))
        abilities = field(there, asked, "capability")
        question, answer = text(there, asked, "question"), text(there, asked, "answer")
        samples.append(_sample(name, before + question, answer, image, abilities))
    all_there((image for sample in samples for image in sample.images), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, before: str) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        yield _sample(
            label(where, row, "question_id"),
            before + text(where, row, "question"),
            text(where, row, "answer"),
            keep_picture(root, where, row["image"]),
            text(where, row, "capability").split(","),
        )


def _sample(name: str, prompt: str, answer: str, image: Path, abilities: list[str]) -> Sample:
    capability = tuple(sorted(ability.strip() for ability in abilities))
    return Sample(
        id=name,
        prompt=prompt,
        references=(answer,),
        images=(image,),
        group=",".join(capability),
        meta={"capability": capability},
    )
