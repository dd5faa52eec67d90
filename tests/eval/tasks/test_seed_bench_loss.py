"""SEED-Bench by its own protocol: what is asked, by type, from both layouts."""

import json

import pyarrow.parquet as pq
import pytest

from eval.options import candidates
from eval.plan import plan
from eval.predict import predict
from eval.score import score_samples, task_results
from eval.store import read_predictions
from eval.task import load_task
from eval.tasks.seed_bench_loss import TYPES
from tests.eval.tasks.choices import seed_hub, seed_llava
from tests.eval.tasks.files import put_table


def load(write, root, profile="llava15"):
    write(root)
    return load_task("seed_bench_loss", root, profile)


def contents(task):
    return [
        (s.id, s.prompt, s.references, s.options, s.group, [p.read_bytes() for p in s.images])
        for s in task.samples
    ]


def test_both_layouts_ask_the_question_alone(tmp_path):
    official = load(seed_llava, tmp_path / "official")
    assert contents(official) == contents(load(seed_hub, tmp_path / "hub"))
    assert {sample.prompt for sample in official.samples} == {"What is seen?"}
    by_letter = load_task("seed_bench", tmp_path / "official")
    for sample, other in zip(official.samples, by_letter.samples, strict=True):
        assert (sample.id, sample.options, sample.references, sample.images) == (
            (other.id, other.options, other.references, other.images)
        )
        assert candidates(official, sample) == sample.options
    assert {sample.group for sample in official.samples} == {"Instances Counting"}
    assert (official.ranked, official.expected_n) == ("texts", by_letter.expected_n)


def test_all_frames_are_shown_where_lmms_eval_shows_them(tmp_path):
    pictures = [
        len(load(seed_hub, tmp_path / profile, profile).samples[1].images)
        for profile in ("llava15", "lmms", "libmoe")
    ]
    assert pictures == [1, 3, 3]


def test_accuracy_is_given_by_type_and_over_all(tmp_path, fake_model):
    seed_llava(tmp_path)
    path = tmp_path / "seed_bench/SEED-Bench.json"
    rows = json.loads(path.read_text())["questions"]
    for number, row in zip((1, 12, 12), rows, strict=True):
        row["question_type_id"] = number
    path.write_text(json.dumps({"questions": rows}))
    task = load_task("seed_bench_loss", tmp_path)
    wrong = next(s for s in task.samples if s.group == TYPES[11])
    model = fake_model(lambda s: s.options["ABCD".index(s.references[0]) - (s.id == wrong.id)])
    requests = plan(task, "f", shuffled_control=False)
    assert {request.wants for request in requests} == {"options"}
    predict(model, task, requests, tmp_path / "run")
    scored = score_samples(task, requests, read_predictions(tmp_path / "run", task.name))
    results = task_results(task, scored, missing=0, limited=False)["conditions"]["right"]
    accuracy = results["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(2 / 3)
    assert {name: group["value"] for name, group in accuracy["groups"].items()} == {
        "Scene Understanding": 1.0,
        "Procedure Understanding": 0.5,
    }
    assert results["flags"] == {}
    assert len(set(TYPES)) == 12


@pytest.mark.parametrize("number", [0, 13, "x"])
def test_an_unknown_type_is_refused(tmp_path, number):
    seed_llava(tmp_path)
    path = tmp_path / "seed_bench/SEED-Bench.json"
    content = json.loads(path.read_text())
    content["questions"][0]["question_type_id"] = number
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=f"question_type_id={number} must be a number from 1 to 12"
    ):
        load_task("seed_bench_loss", tmp_path)


def test_a_copy_without_types_is_refused_but_serves_the_letters(tmp_path):
    seed_hub(tmp_path)
    (path,) = (tmp_path / "hub").rglob("*.parquet")
    rows = [
        {name: cell for name, cell in row.items() if name != "question_type_id"}
        for row in pq.read_table(path).to_pylist()
    ]
    path.unlink()
    put_table(path, rows)
    with pytest.raises(ValueError, match=r"columns \['question_type_id'\] are missing"):
        load_task("seed_bench_loss", tmp_path)
    assert len(load_task("seed_bench", tmp_path).samples) == 3


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"seed_bench_loss(.|\n)*llava-seed-bench.jsonl"):
        load_task("seed_bench_loss", tmp_path)


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed_bench_loss has llava15, lmms, libmoe"):
        load(seed_llava, tmp_path, "vlmeval")
