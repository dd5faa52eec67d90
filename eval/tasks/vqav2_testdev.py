"""VQAv2 (arXiv:1612.00837), test-dev: answers for the server of its challenge, which scores them.

Prompt: form S in all profiles; with LLaVA's question file ``llava15`` takes its text as it stands.
"""

from collections.abc import Iterator
from pathlib import Path

from eval import unscored
from eval.readers import read_jsonl
from eval.readers.annotations import in_order
from eval.readers.fields import inside, label, text
from eval.readers.layouts import Found, Layout, all_there, find_layout, hub
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from eval.readers.prompts import SHORT, of_profile, short
from eval.task import DEFAULT_PROFILE, Sample, Task

LAYOUTS: dict[str, Layout] = {
    "LLaVA's questions": {"questions": ("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",)},
    "hub copy": {"tables": hub("vqav2", "testdev-*")},
}
PICTURES = "  DATA_ROOT/vqav2/test2015/COCO_test2015_*.jpg"
COLUMNS = ("question_id", "question", "image")
TOKENS = {"llava15": 128, "lmms": 16, "libmoe": 16}


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/vqav2`` or ``root/hub/vqav2``; no sample has references."""
    tokens = of_profile("vqav2_testdev", profile, TOKENS)
    found = find_layout(root, "vqav2_testdev", LAYOUTS)
    samples = _hub(root, found) if "tables" in found.files else _llava(root, found, profile)
    return Task(
        name="vqav2_testdev",
        version=1,
        description=f"open questions about COCO's pictures, test-dev ({found.layout})",
        samples=in_order("vqav2_testdev", samples),
        score=unscored.score,
        aggregate=unscored.aggregate,
        headline="vqa_accuracy",
        max_new_tokens=tokens,
        expected_n=107394,
        unscored="the answers of test-dev are with the challenge's server",
    )


def _llava(root: Path, found: Found, profile: str) -> Iterator[Sample]:
    folder, samples = root / "vqav2/test2015", []
    for where, row in read_jsonl(found.one("questions")):
        prompt = text(where, row, "text")
        if profile != "llava15":
            prompt = short(prompt.removesuffix(f"\n{SHORT}"))
        image = inside(where, folder, text(where, row, "image"))
        samples.append(Sample(label(where, row, "question_id"), prompt, (), (image,)))
    all_there((sample.images[0] for sample in samples), PICTURES)
    yield from samples


def _hub(root: Path, found: Found) -> Iterator[Sample]:
    for where, row in read_pictured(root, found.files["tables"], COLUMNS):
        prompt = short(text(where, row, "question"))
        image = keep_picture(root, where, row["image"])
        yield Sample(label(where, row, "question_id"), prompt, (), (image,))
