"""lmms-eval's requests and ours; with lmms-eval itself where the extra is installed."""

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from eval.inference import Inference
from eval.lmms.ask import Generation, PictureFiles, generate_until, loglikelihood
from eval.model import LlavaCompete
from eval.predict import TooLargeError
from eval.task import Sample
from tests import tiny
from tests.tiny import draw

ROOT = Path(__file__).parents[2]
DOCS = [{"question": f"What is box {i}?" + " Tell." * i, "picture": i % 3} for i in range(7)]


def pictures(doc):
    return [draw(doc["picture"])]


def request(number, settings_or_target, visual=pictures, context=None):
    context = DOCS[number]["question"] if context is None else context
    return (context, settings_or_target, visual, number, "boxes", "test")


def docs(rows=DOCS):
    return {"boxes": {"test": rows}}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (1024, ())),
        ({"max_new_tokens": 16, "until": "\n"}, (16, ("\n",))),
        ({"until": ["\n\n", "Q:"], "do_sample": False, "temperature": 0.2}, (1024, ("\n\n", "Q:"))),
        ({"do_sample": True, "temperature": 0, "top_p": None, "num_beams": 1}, (1024, ())),
        ({"until": None, "image_aspect_ratio": "pad"}, (1024, ())),
    ],
)
def test_settings_of_a_greedy_answer(settings, wanted):
    assert Generation.parse(settings) == wanted


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"num_beams": 3}, "num_beams=3"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"until": ["a", ""]}, "until"),
        ({"stop_sequences": ["a"]}, "stop_sequences"),
    ],
)
def test_other_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Generation.parse(settings)


def test_an_answer_is_cut_at_the_first_stop_string():
    assert Generation(8, ("Q:", "\n")).cut("red\nblue Q: x") == "red"
    assert Generation(8, ("Q:",)).cut("red\nblue") == "red\nblue"
    assert Generation(8, ()).cut("red\n") == "red\n"


def test_answers_come_in_the_order_of_the_requests(fake_model):
    model = fake_model(lambda sample: f"{sample.prompt}|more")
    until = [{"until": "|"}, {"max_new_tokens": 4}]
    requests = [request(i, until[i % 2]) for i in range(7)]
    texts = generate_until(model, requests, docs(), 3)
    questions = [doc["question"] for doc in DOCS]
    assert texts == [q if i % 2 == 0 else f"{q}|more" for i, q in enumerate(questions)]
    assert model.batches == [3, 1, 3]  # four of the one kind, three of the other


def test_a_batch_that_is_too_large_is_halved(fake_model):
    model = fake_model(lambda sample: sample.prompt, room=2)
    texts = generate_until(model, [request(i, {}) for i in range(7)], docs(), 5)
    assert texts == [doc["question"] for doc in DOCS]
    assert model.batches == [2, 2, 2, 1]
    with pytest.raises(TooLargeError):
        generate_until(fake_model(str, room=0), [request(0, {})], docs(), 2)


def test_placeholders_and_absent_pictures(fake_model):
    seen = []
    model = fake_model(lambda sample: seen.append(sample) or "")
    for visual, context in (
        (lambda doc: [draw(0), draw(1), draw(0)], "<image>\nCompare <image>and<image>."),
        (lambda doc: None, "What?"),
        (lambda doc: [None], "What?"),
    ):
        generate_until(model, [request(0, {}, visual, context)], docs(), 1)
    assert [sample.prompt for sample in seen] == ["Compare and.", "What?", "What?"]
    first, second, third = seen[0].images
    assert first == third != second
    assert [sample.images for sample in seen[1:]] == [(), ()]
    assert not first.parent.exists()


def test_losses_and_greedy_continuations(fake_model):
    model = fake_model(lambda sample: "red")
    targets = [" red", " blue", lambda doc: f"box {doc['picture']}"]
    requests = [request(i, target) for i in (0, 4) for target in targets]
    values = loglikelihood(model, requests, docs(), 4)
    texts = ["red", "blue", "box 0", "red", "blue", "box 1"]
    assert values == [(1.25 + len(text) / 7, text == "red") for text in texts]
    assert model.batches == [4, 2, 2]  # six losses, one answer to each of two questions


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (request(1, {}, lambda doc: ["a.mp4"]), "document 1 of boxes shows a str"),
        (request(1, {}, lambda doc: [Image.new("F", (2, 2))]), "mode F"),
        (request(1, {}, context=["What?"]), "a list, expected a text"),
    ],
)
def test_bad_requests_are_named(fake_model, broken, named):
    with pytest.raises(ValueError, match=named):
        generate_until(fake_model(lambda sample: ""), [broken], docs(), 1)


def test_options_without_a_question_are_refused(fake_model):
    with pytest.raises(ValueError, match="acc_mutual_info"):
        loglikelihood(fake_model(lambda sample: ""), [request(0, "a"), ("", "a")], docs(), 1)


def test_an_empty_continuation_is_named(fake_model):
    with pytest.raises(ValueError, match=r"document 2 of boxes .* ' '"):
        loglikelihood(fake_model(lambda sample: ""), [request(2, " ")], docs(), 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_picture_files_hold_the_same_pixels(tmp_path, mode):
    picture = draw(3).convert("RGBA" if mode == "PA" else "RGB")
    picture = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    (path,) = PictureFiles(tmp_path).write([picture], "x")
    with Image.open(path) as read:
        assert read.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Its experts differ so much that its answers do, too."""
    return tiny.make_checkpoint(tmp_path_factory.mktemp("lmms") / "moe", perturbation=3.0)


@pytest.fixture(scope="module")
def asked(checkpoint):
    return LlavaCompete.load(checkpoint, "float32", Inference())


def own_samples(folder, references=()):
    """The documents as the harness asks them from files."""
    paths = [folder / f"{doc['picture']}.png" for doc in DOCS]
    for doc, path in zip(DOCS, paths, strict=True):
        draw(doc["picture"]).save(path)
    return [
        Sample(f"{i}", doc["question"], references, (path,))
        for i, (doc, path) in enumerate(zip(DOCS, paths, strict=True))
    ]


def test_requests_give_what_the_harness_gives(asked, tmp_path, monkeypatch):
    wanted = [asked.answers([sample], 6)[0].text for sample in own_samples(tmp_path)]
    losses = asked.answer_losses(own_samples(tmp_path, ("a red box",)))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval does
    requests = [request(i, {"max_new_tokens": 6}) for i in range(7)]
    assert generate_until(asked, requests, docs(), 3) == wanted
    assert len(set(wanted)) > 3
    values = loglikelihood(asked, [request(i, " a red box") for i in range(7)], docs(), 3)
    assert [loss for loss, _ in values] == pytest.approx(losses, rel=1e-5)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_entry_point_names_the_manifest_and_imports_nothing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["llava_compete"].split(":")
    assert callable(getattr(import_module(module), name))
    code = (
        "import eval.lmms.ask, sys; sys.exit(any(m in sys.modules for m in ['lmms_eval', 'torch']))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_visual: !function utils.pictures
doc_to_text: question
"""
OPEN = """
task: tiny_open
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["J"], max_new_tokens: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_choice: ["red", "a blue box", "green one"]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="scripts/test_lmms.sh runs it")
def test_the_real_package_runs_a_local_task(asked, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    options = ["red", "a blue box", "green one"]
    samples = own_samples(tmp_path)
    cut = [asked.answers([sample], 6)[0].text.partition("J")[0].strip() for sample in samples]
    losses = [asked.answer_losses(own_samples(tmp_path, (option,))) for option in options]
    best = [min(range(3), key=row.__getitem__) for row in zip(*losses, strict=True)]
    rows = [
        {"question": s.prompt, "image": str(s.images[0]), "answer": "no" if i == 2 else cut[i]}
        | {"gold": (best[i] + (i < 3)) % 3}
        for i, s in enumerate(samples)
    ]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "utils.py").write_text(UTILS)
    for name, text in (("open", OPEN), ("choice", CHOICE)):
        common = COMMON.format(rows=tmp_path / "rows.jsonl")
        (tasks / f"tiny_{name}.yaml").write_text(common + text)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval had set it
    results = simple_evaluate(
        model="llava_compete",
        model_args=f"pretrained={checkpoint}",
        tasks=["tiny_open", "tiny_choice"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=3,
        log_samples=True,
    )
    logged = {row["doc_id"]: row for row in results["samples"]["tiny_open"]}
    assert [logged[i]["filtered_resps"][0].strip() for i in range(7)] == cut
    assert results["results"]["tiny_open"]["exact_match,none"] == pytest.approx(6 / 7)
    assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(4 / 7)
