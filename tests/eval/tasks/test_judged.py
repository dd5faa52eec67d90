"""POPE, MME, HallusionBench, MathVista, MM-Vet and LLaVA-W: both layouts, prompts, scores."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from eval.plan import plan
from eval.report import table
from eval.score import score_samples, task_results
from eval.task import Scored, load_task
from tests.eval.tasks import judged
from tests.eval.tasks.judged import BOTH, SHORT

SCORED = ("pope", "mme", "hallusionbench", "mathvista")
PROFILES = ("llava15", "lmms", "libmoe")


@pytest.fixture
def official(tmp_path):
    return tmp_path / "official"


@pytest.fixture
def hub(tmp_path):
    return tmp_path / "hub_copy"


def shown(sample):
    """A sample with the content of its pictures in place of their paths."""
    return replace(sample, images=tuple(path.read_bytes() for path in sample.images))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", BOTH)
def test_both_layouts_give_the_same_samples(name, profile, official, hub):
    write_official, write_hub = BOTH[name]
    write_official(official)
    write_hub(hub)
    tasks = [load_task(name, root, profile) for root in (official, hub)]
    samples = [[shown(sample) for sample in task.samples] for task in tasks]
    assert len(samples[0]) == 3
    assert samples[0] == samples[1]
    assert all(len(sample.images) == 1 and sample.images[0] for sample in samples[0])
    assert tasks[0].name == tasks[1].name == name


@pytest.mark.parametrize("name", BOTH)
def test_the_official_files_go_first_and_the_description_says_so(name, official):
    for write in BOTH[name]:
        write(official)
    both = load_task(name, official)
    assert not (official / ".pictures").exists()
    assert "hub copy" not in both.description
    shutil.move(official / "hub", official / "other")
    assert load_task(name, official).description == both.description


@pytest.mark.parametrize("name", BOTH)
def test_an_arrow_copy_reads_as_the_parquet_one(name, hub):
    BOTH[name][1](hub)
    before = load_task(name, hub)
    for path in (hub / "hub").rglob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        path.unlink()
        judged.put_table(path.with_suffix(".arrow"), rows)
    assert load_task(name, hub).samples == before.samples


@pytest.mark.parametrize("name", BOTH)
def test_absent_files_are_all_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: no layout of it is complete") as error:
        load_task(name, tmp_path)
    assert f"{tmp_path}/hub/{name}/**/" in str(error.value)
    assert str(error.value).count("absent") >= 2


@pytest.mark.parametrize("name", BOTH)
def test_an_absent_picture_is_named(name, official):
    BOTH[name][0](official)
    gone = load_task(name, official).samples[-1].images[0]
    gone.unlink()
    with pytest.raises(ValueError, match=f"no such file; looked for\n  .*{gone.name}"):
        load_task(name, official)


@pytest.mark.parametrize("name", BOTH)
def test_a_cell_that_holds_no_picture_is_refused(name, hub, monkeypatch):
    monkeypatch.setattr(judged, "picture", lambda *_: b"no picture")
    BOTH[name][1](hub)
    with pytest.raises(ValueError, match="row 1: 10 bytes that are no picture"):
        load_task(name, hub)


@pytest.mark.parametrize("name", BOTH)
def test_an_unknown_profile_is_refused_with_those_there_are(name, hub):
    BOTH[name][1](hub)
    with pytest.raises(ValueError, match=r"'vlm'.*llava15, lmms, libmoe"):
        load_task(name, hub, "vlm")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SCORED)
def test_the_reference_is_right_and_the_headline_among_the_metrics(name, profile, official):
    BOTH[name][0](official)
    task = load_task(name, official, profile)
    rows = [Scored(sample, task.score(sample.references[0], sample)) for sample in task.samples]
    assert {value for row in rows for value in row.score.values.values()} == {1.0}
    metrics = task.aggregate(rows)
    if (name, profile) == ("mme", "libmoe"):  # two of 14 categories, one of either kind
        assert metrics["libmoe_percentage"].value == pytest.approx((200 + 100) / 2800)
    elif name == "mme":
        assert metrics["perception"].value == 200.0
    elif (name, profile) == ("pope", "llava15"):
        assert metrics["f1_mean"].value == pytest.approx(2 / 3)  # no yes among the adversarial
    else:
        assert metrics[task.headline].value == 1.0


@pytest.mark.parametrize("name", ["mm_vet", "llava_w"])
def test_a_judged_task_has_no_score_but_a_reason(name, official):
    BOTH[name][0](official)
    task = load_task(name, official)
    requests = plan(task, "f", shuffled_control=False)
    reply = {"text": "a cat", "tokens": 2, "finished": True}
    rows = score_samples(task, requests, {request.key: reply for request in requests})
    results = task_results(task, rows, missing=0, limited=False)
    assert results["score"] is None
    assert "GPT-4" in results["unscored"]
    assert results["conditions"]["right"]["metrics"] == {}
    assert results["n"] == 3
    text = table({"limit": None, "tasks": {name: results}})
    assert f"- {name}: no score, GPT-4" in text
    assert "| gpt_score | 3 | none  |" in text


def test_prompts_of_pope_and_hallusionbench(official):
    judged.pope_official(official)
    judged.hallusionbench_official(official)
    for profile in PROFILES:
        pope = load_task("pope", official, profile).samples
        assert pope[0].prompt == f"Is there a dog in the image?\n{SHORT}"
        assert [sample.id for sample in pope] == ["random/1", "popular/1", "adversarial/7"]
        assert [sample.group for sample in pope] == ["random", "popular", "adversarial"]
        assert load_task("hallusionbench", official, profile).samples[2].prompt == (
            "Is China first in this chart?"
        )


@pytest.mark.parametrize(("profile", "space"), [("llava15", ""), ("lmms", " "), ("libmoe", " ")])
def test_mme_asks_for_a_word_instead_of_yes_or_no(profile, space, hub):
    judged.mme_hub(hub)
    samples = {sample.id: sample for sample in load_task("mme", hub, profile).samples}
    assert samples["artwork/10002/1"].prompt == f"Is it a glass?{space}\n{SHORT}"  # two spaces
    assert samples["artwork/10002/2"].prompt == f"Is it a painting?\n{SHORT}"
    assert samples["code_reasoning/0020/1"].prompt == f"Is it Python?\n{SHORT}"
    assert samples["artwork/10002/1"].references == ("no",)
    assert samples["artwork/10002/1"].meta == {"pair": "10002"}


def test_mme_may_lie_one_folder_deeper(official):
    judged.mme_official(official)
    base = official / "MME/MME_Benchmark_release_version"
    before = [shown(sample) for sample in load_task("mme", official).samples]
    inner = base / "MME_Benchmark"
    inner.mkdir()
    for name in ("artwork", "code_reasoning"):
        shutil.move(base / name, inner / name)
    assert [shown(sample) for sample in load_task("mme", official).samples] == before


def test_prompts_of_mathvista(hub):
    judged.mathvista_hub(hub)
    own = [sample.prompt for sample in load_task("mathvista", hub).samples]
    assert own == [row["query"] for row in judged.MATHVISTA]
    for profile in ("lmms", "libmoe"):
        heavy, longer, many = load_task("mathvista", hub, profile).samples
        assert heavy.prompt == (
            "How heavy is it? (Unit: g)\n"
            "Answer the question using a single floating-point number with one decimal place."
        )
        assert longer.prompt == (
            "Which is longer?\nA. left\nB. right\n"
            "Answer with the option's letter from the given choices directly."
        )
        assert many.prompt == "How many?\nAnswer the question using a single integer number."
        assert longer.options == ("left", "right")
    assert heavy.meta == {"question_type": "free_form", "answer_type": "float", "precision": 1}


def test_an_answer_type_without_an_instruction_is_refused(hub, monkeypatch):
    odd = judged.MATHVISTA[0] | {"precision": 3.0}
    monkeypatch.setattr(judged, "MATHVISTA", [odd])
    judged.mathvista_hub(hub)
    assert load_task("mathvista", hub).samples[0].meta["precision"] == 3
    with pytest.raises(ValueError, match=r"row 1: no instruction for answer_type='float' .*=3"):
        load_task("mathvista", hub, "lmms")


def test_prompts_and_references_of_judged_tasks(hub):
    judged.mm_vet_hub(hub)
    judged.llava_w_hub(hub)
    asked = load_task("mm_vet", hub).samples[0]
    assert (asked.id, asked.prompt) == ("v1_0", "What is x in the equation?")
    assert (asked.references, asked.group) == (("-1<AND>-5",), "math,ocr")
    for profile in ("lmms", "libmoe"):
        prompt = load_task("mm_vet", hub, profile).samples[0].prompt
        assert prompt.startswith("First please perform reasoning")
        assert prompt.endswith("following question: \n\nWhat is x in the equation?")
    wild = load_task("llava_w", hub).samples[2]
    assert (wild.id, wild.prompt, wild.group) == ("2", "Why is it so?", "complex")
    assert (wild.references, wild.meta) == (("It is 2.",), {"context": "Thing 2."})


def rewrite(path, number, **changes):
    """Change one row of a JSON lines file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number] |= changes
    judged.put_lines(path, rows)


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("pope", "pope/llava_pope_test.jsonl", {"text": "Is there a cup?"}, "no label in coco_p"),
        ("pope", "pope/coco/coco_pope_random.json", {"label": "maybe"}, "'maybe' must be yes or"),
        ("mme", "MME/llava_mme.jsonl", {"text": "Is it a cup?"}, "no line of 10002.txt in MME's"),
        ("mme", "MME/llava_mme.jsonl", {"image": "../../../x"}, "must stay inside"),
        ("mm_vet", "mm-vet/llava-mm-vet.jsonl", {"question_id": 9}, "has no v1_9"),
        (
            "llava_w",
            "llava-bench-in-the-wild/questions.jsonl",
            {"image": "009.jpg"},
            "no description in context.jsonl",
        ),
    ],
)
def test_questions_and_annotations_that_do_not_join_are_refused(
    name, file, changes, message, official
):
    BOTH[name][0](official)
    rewrite(official / file, 0, **changes)
    with pytest.raises(ValueError, match=message):
        load_task(name, official)


def test_rows_that_occur_twice_are_refused(hub, monkeypatch):
    monkeypatch.setattr(judged, "POPE", [judged.POPE[0]] * 2)
    judged.pope_hub(hub)
    with pytest.raises(ValueError, match=r"pope has ids that are used twice: \['random/1'\]"):
        load_task("pope", hub)


def test_expected_numbers(official, hub):
    for name, (write_official, write_hub) in BOTH.items():
        write_official(official)
        write_hub(hub)
        found = [load_task(name, root).expected_n for root in (official, hub)]
        wanted = {"pope": [8910, 9000], "mme": [None] * 2, "mm_vet": [218] * 2, "llava_w": [60] * 2}
        assert found == (wanted | {"hallusionbench": [951] * 2, "mathvista": [1000] * 2})[name]
