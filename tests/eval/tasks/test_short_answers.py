"""VQAv2, GQA, VizWiz, TextVQA, ChartQA, DocVQA, InfoVQA, OCRBench: layouts, prompts, scores."""

import json
from dataclasses import replace

import pytest

from eval.plan import plan
from eval.report import table
from eval.score import score_samples, task_results
from eval.task import Scored, load_task
from tests.eval.tasks.files import put_json, put_lines
from tests.eval.tasks.short_answers import (
    BOTH,
    QUESTIONS,
    SHORT,
    UNANSWERABLE,
    documents_hub,
)

PROFILES = ("llava15", "lmms", "libmoe")
SERVED = ("vqav2_testdev", "vizwiz_vqa_test", "docvqa_test")
SCORED = [name for name in BOTH if name not in SERVED]


def shown(task):
    """Its samples with the content of their pictures in place of the paths."""
    return [replace(s, images=tuple(p.read_bytes() for p in s.images)) for s in task.samples]


def official(name, root, profile="llava15"):
    BOTH[name][0](root)
    return load_task(name, root, profile)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", BOTH)
def test_both_layouts_give_the_same_samples(name, profile, tmp_path):
    tasks = []
    for write, root in zip(BOTH[name], (tmp_path / "official", tmp_path / "hub"), strict=True):
        write(root)
        tasks.append(load_task(name, root, profile))
    one, other = tasks
    assert len(one.samples) == 3
    assert shown(one) == shown(other)
    assert all(len(sample.images) == 1 for sample in one.samples)
    assert (one.name, other.name) == (name, name)
    assert "hub copy" in other.description
    assert one.expected_n == other.expected_n
    assert one.expected_n >= 1000


@pytest.mark.parametrize("name", BOTH)
def test_the_official_files_go_first(name, tmp_path):
    for write in BOTH[name]:
        write(tmp_path)
    assert "hub copy" not in load_task(name, tmp_path).description
    assert not (tmp_path / ".pictures").exists()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SCORED)
def test_a_perfect_answer_scores_one_and_nonsense_zero(name, profile, tmp_path):
    task = official(name, tmp_path, profile)
    right = [Scored(s, task.score(s.references[0], s)) for s in task.samples]
    wrong = [Scored(s, task.score("zebra crossing", s)) for s in task.samples]
    best = 3.0 if name == "ocrbench" else 1.0
    assert task.aggregate(right)[task.headline].value == best
    assert task.aggregate(wrong)[task.headline].value == 0.0


@pytest.mark.parametrize("name", SERVED)
def test_what_a_server_scores_has_no_score_here(name, tmp_path):
    task = official(name, tmp_path)
    assert "server" in task.unscored
    assert [sample.references for sample in task.samples] == [(), (), ()]
    assert task.aggregate([Scored(s, task.score("cat", s)) for s in task.samples]) == {}


def test_the_report_of_what_a_server_scores_says_who_does(tmp_path):
    task = official("vqav2_testdev", tmp_path)
    requests = plan(task, "checkpoint", shuffled_control=False)
    replies = {request.key: {"text": "cat", "finished": True} for request in requests}
    rows = score_samples(task, requests, replies)
    results = task_results(task, rows, missing=0, limited=False)
    assert results["score"] is None
    assert not results["complete"]  # three of 107,394
    text = table({"fingerprint": "x", "limit": None, "tasks": {task.name: results}})
    assert "no score, the answers of test-dev are with the challenge's server" in text


@pytest.mark.parametrize("name", BOTH)
def test_absent_data_names_both_layouts_and_all_their_paths(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: no layout of it is complete") as error:
        load_task(name, tmp_path)
    assert "hub copy" in str(error.value)
    assert f"{tmp_path}/hub/" in str(error.value)
    assert "(absent)" in str(error.value)


@pytest.mark.parametrize("name", BOTH)
def test_absent_pictures_of_the_official_files_are_named(name, tmp_path):
    official(name, tmp_path)
    gone = sorted([*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")])[0]
    gone.unlink()
    with pytest.raises(ValueError, match="no such file; looked for") as error:
        load_task(name, tmp_path)
    assert str(gone) in str(error.value)


@pytest.mark.parametrize("name", BOTH)
def test_a_profile_that_there_is_not_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"profile='mine': {name} has llava15, lmms, libmoe"):
        load_task(name, tmp_path, "mine")


@pytest.mark.parametrize(
    ("name", "profile", "prompts"),
    [
        ("vqav2", "llava15", [f"{q}\n{SHORT}" for q in QUESTIONS]),
        ("vqav2_testdev", "lmms", [f"{q}\n{SHORT}" for q in QUESTIONS]),
        ("vizwiz_vqa", "llava15", [f"{q}\n{UNANSWERABLE}\n{SHORT}" for q in QUESTIONS]),
        (
            "vizwiz_vqa_test",
            "lmms",
            [f"{q.capitalize()}\n{UNANSWERABLE}\n{SHORT}" for q in QUESTIONS],
        ),
        (
            "textvqa",
            "llava15",
            [
                f"what is the Brand?\nReference OCR token: DAKOTA, 1,5\n{SHORT}",
                f"is it red?\nReference OCR token: \n{SHORT}",
                f"how many?\nReference OCR token: a\n{SHORT}",
            ],
        ),
        (
            "textvqa",
            "lmms",
            [f"{q}\n{SHORT}" for q in ("What is the brand?", "Is it red?", "How many?")],
        ),
        (
            "textvqa_no_ocr",
            "llava15",
            [f"{q}\n{SHORT}" for q in ("what is the Brand?", "is it red?", "how many?")],
        ),
        (
            "chartqa",
            "libmoe",
            [
                f"{q}\nAnswer the question with a single word."
                for q in ("What share?", "Which year?", "What colour?")
            ],
        ),
        ("infovqa", "llava15", [f"{QUESTIONS[i]}\n{SHORT}" for i in (1, 2, 0)]),
        ("ocrbench", "llava15", ["what is written?", " Write the formula. ", "Who?"]),
        ("ocrbench", "lmms", ["what is written?", "Write the formula.", "Who?"]),
    ],
)
def test_prompts(name, profile, prompts, tmp_path):
    task = official(name, tmp_path, profile)
    assert sorted(sample.prompt for sample in task.samples) == sorted(prompts)


def test_groups_and_what_the_rules_need(tmp_path):
    def groups(name):
        return [sample.group for sample in official(name, tmp_path).samples]

    assert groups("gqa") == ["verify", "choose", "query"]
    assert groups("vqav2") == ["other", "yes/no", "number"]
    assert groups("chartqa") == ["human", "human", "augmented"]
    assert official("ocrbench", tmp_path).samples[1].meta == {"dataset": "HME100k"}


def test_profiles_score_as_their_tools_do(tmp_path):
    for profile, value in (("llava15", 0.0), ("lmms", 1.0)):
        task = official("gqa", tmp_path, profile)
        assert task.score("left!", task.samples[1]).values == {"exact_match": value}
    for profile, value in (("llava15", 1.0), ("libmoe", 0.0)):
        task = official("vqav2", tmp_path, profile)
        assert task.score("2.", task.samples[2]).values == {"vqa_accuracy": value}


def test_llava_asks_with_the_letters_of_its_own_file(tmp_path):
    official("textvqa", tmp_path)
    path = tmp_path / "textvqa/llava_textvqa_val_v051_ocr.jsonl"
    path.write_text(path.read_text().replace("is it red?", "Is it RED?"))
    prompts = {
        (name, profile): load_task(name, tmp_path, profile).samples[1].prompt
        for name, profile in (("textvqa", "llava15"), ("textvqa", "lmms"))
    }
    assert prompts["textvqa", "llava15"] == f"Is it RED?\nReference OCR token: \n{SHORT}"
    assert prompts["textvqa", "lmms"] == f"Is it red?\n{SHORT}"


def test_a_copy_of_the_whole_repository_gives_the_benchmark_alone(tmp_path):
    for folder in ("DocVQA", "InfographicVQA"):
        documents_hub(tmp_path / f"hub/docvqa/{folder}/validation-0.parquet")
    assert len(load_task("docvqa", tmp_path).samples) == 3


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("gqa", "gqa/llava_gqa_testdev_balanced.jsonl", r"do not join: 0 .* 1 in the second alone"),
        ("textvqa", "textvqa/llava_textvqa_val_v051_ocr.jsonl", "does not ask 'how many"),
    ],
)
def test_questions_and_answers_that_do_not_join_are_refused(name, file, message, tmp_path):
    official(name, tmp_path)
    lines = (tmp_path / file).read_text().splitlines()
    put_lines(tmp_path / file, map(json.loads, lines[:2]))
    with pytest.raises(ValueError, match=message):
        load_task(name, tmp_path)


def test_answers_of_another_split_are_refused(tmp_path):
    official("vqav2", tmp_path)
    path = tmp_path / "vqav2/v2_mscoco_val2014_annotations.json"
    rows = json.loads(path.read_text())["annotations"]
    put_json(path, {"annotations": [row | {"question_id": row["question_id"] + 1} for row in rows]})
    with pytest.raises(ValueError, match=r"1 ids are in the first alone \['7'\]"):
        load_task("vqav2", tmp_path)


def test_a_question_that_nobody_answers_is_refused(tmp_path):
    official("textvqa", tmp_path)
    path = tmp_path / "textvqa/TextVQA_0.5.1_val.json"
    put_json(path, {"data": json.loads(path.read_text())["data"][:2]})
    with pytest.raises(ValueError, match="1 unanswered, such as"):
        load_task("textvqa", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("docvqa", "docvqa/val_v1.0_withQT.json", '["Bob"]', "[]", "row 2: answers are empty"),
        ("docvqa", "docvqa/val_v1.0_withQT.json", '["Bob"]', '"Bob"', "must be a list of texts"),
        ("docvqa", "docvqa/val_v1.0_withQT.json", "123", "9", "the id '9' is used twice"),
        ("ocrbench", "ocrbench/OCRBench.json", "docVQA/2.jpg", "../../x", "must stay inside"),
        ("vizwiz_vqa", "vizwiz/Annotations/val.json", '"What is it?"', '" "', "not empty"),
        ("gqa", "gqa/data/testdev_balanced_questions.json", '"structural"', '"x"', "is missing"),
        (
            "textvqa",
            "textvqa/llava_textvqa_val_v051_ocr.jsonl",
            "Reference OCR token: a",
            "OCR: a",
            "is not a question, an OCR line",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_place(name, file, old, new, message, tmp_path):
    official(name, tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_task(name, tmp_path)
