"""VizWiz-VQA (arXiv:1802.08218), test: answers for the server of its challenge, which scores them.

Prompts are those of ``vizwiz_vqa``; with LLaVA's question file ``llava15`` takes its text as it
stands. The picture's name, which the server asks for, is the id with ".jpg".
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from eval import unscored
from eval.readers import read_jsonl
from eval.readers.annotations import in_order
from eval.readers.fields import inside, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import of_profile
from eval.task import DEFAULT_PROFILE, Sample, Task
from eval.tasks.vizwiz_vqa import INSTRUCTION, PROMPTS

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions": {"questions": ("vizwiz/llava_test.jsonl",)},
    "hub copy": {"tables": hub("vizwiz", "test-*")},
}
PICTURES = "  DATA_ROOT/vizwiz/test/*.jpg"
COLUMNS = ("question_id", "question", "image")


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/vizwiz`` or ``root/hub/vizwiz``; no sample has references."""
    prompt = of_profile("vizwiz_vqa_test", profile, PROMPTS)
    found = find_layout(root, "vizwiz_vqa_test", LAYOUTS)
    hub_copy = "tables" in found.files
    samples = _hub(root, found, prompt) if hub_copy else _llava(root, found, profile)
    return Task(
        name="vizwiz_vqa_test",
        version=1,
        description=f"questions of blind people about their photographs, test ({found.layout})",
        samples=in_order("vizwiz_vqa_test", samples),
        score=unscored.score,
        aggregate=unscored.aggregate,
        headline="vqa_accuracy",
        max_new_tokens=128,
        expected_n=8000,
        unscored="the answers of test are with the challenge's server",
    )


def _llava(root: Path, found: Found, profile: str) -> Iterator[Sample]:
    folder, samples = root / "vizwiz/test", []
    for where, row in read_jsonl(found.one("questions")):
        question = text(where, row, "text")
        if profile != "llava15":
            question = PROMPTS[profile](question.removesuffix(f"\n{INSTRUCTION}"))
        name = text(where, row, "image")
        image = inside(where, folder, name)
        samples.append(Sample(PurePosixPath(name).stem, question, (), (image,)))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found, prompt: Callable[[str], str]) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        name = PurePosixPath(text(where, row, "question_id")).name.removesuffix(".jpg")
        image = keep_picture(root, where, row["image"])
        yield Sample(name, prompt(text(where, row, "question")), (), (image,))
