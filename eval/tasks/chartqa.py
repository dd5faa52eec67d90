"""ChartQA (arXiv:2203.10244), test: questions about charts, by people and by a model.

Prompt: form S; ``lmms`` and ``libmoe`` ask for "a single word" instead (lmms-eval's wording has
changed between versions). LLaVA-1.5 has no prompt of its own for it. Score: relaxed accuracy.
``group`` is human or augmented; an id is that and the row's place in its part.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from eval.metrics import relaxed_accuracy
from eval.readers.annotations import in_order, read_rows
from eval.readers.fields import inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

PARTS = ("human", "augmented")
LAYOUTS: dict[str, Layout] = {
    "official files": {
        part: (f"chartqa/test/test_{part}.json", f"chartqa/ChartQA Dataset/test/test_{part}.json")
        for part in PARTS
    },
    "hub copy": {"tables": hub("chartqa", "test-*")},
}
PICTURES = "  DATA_ROOT/chartqa/test/png/*.png, beside test_human.json"
COLUMNS = ("type", "question", "answer", "image")
WORD = "Answer the question with a single word."
WAYS = {"llava15": (SHORT, 128), "lmms": (WORD, 16), "libmoe": (WORD, 16)}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/chartqa`` or ``root/hub/chartqa``."""
    instruction, tokens = of_profile("chartqa", profile, WAYS)
    found = find_layout(root, "chartqa", LAYOUTS)
    read = _hub if "tables" in found.files else _official
    return Task(
        name="chartqa",
        version=1,
        description=f"questions about charts ({found.layout})",
        samples=in_order("chartqa", read(root, found, instruction)),
        score=relaxed_accuracy.score,
        aggregate=relaxed_accuracy.aggregate,
        headline="relaxed_accuracy",
        max_new_tokens=tokens,
        expected_n=2500,
    )


def _official(root: Path, found: Found, instruction: str) -> Iterator[Sample]:
    samples = []
    for part in PARTS:
        folder = found.one(part).parent / "png"
        for number, (where, row) in enumerate(read_rows(found.one(part))):
            image = inside(where, folder, text(where, row, "imgname"))
            prompt = short(text(where, row, "query"), instruction)
            answer = label(where, row, "label")
            samples.append(Sample(f"{part}/{number}", prompt, (answer,), (image,), group=part))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, instruction: str) -> Iterator[Sample]:
    seen: Counter[str] = Counter()
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        part = text(where, row, "type").removesuffix("_test")
        if part not in PARTS:
            raise ValueError(f"{where}: type={row['type']!r} must be human_test or augmented_test")
        image = keep_picture(root, where, row["image"])
        prompt = short(text(where, row, "question"), instruction)
        name, answer = f"{part}/{seen[part]}", label(where, row, "answer")
        seen[part] += 1
        yield Sample(name, prompt, (answer,), (image,), group=part)
