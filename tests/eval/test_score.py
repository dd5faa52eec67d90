import json
from dataclasses import replace

import pytest

from eval.plan import plan
from eval.score import score_run, score_samples, task_results
from eval.store import write_json
from eval.task import load_task


@pytest.fixture
def task(data_root):
    return load_task("stamps_short", data_root)


def replies_to(requests, text="square", finished=True, **more):
    return {
        r.key: {"loss": 1.5}
        if r.wants == "loss"
        else {"text": text, "tokens": 2, "finished": finished} | more
        for r in requests
    }


def test_a_reply_under_another_key_is_not_scored(task):
    replies = replies_to(plan(task, "other", shuffled_control=False))
    assert score_samples(task, plan(task, "f", shuffled_control=False), replies) == []


def test_cut_and_empty_answers_are_flagged(task):
    requests = plan(task, "f", shuffled_control=False)
    cut = score_samples(task, requests, replies_to(requests, finished=False))
    assert {row.scored.score.flags for row in cut} == {("truncated",)}
    empty = score_samples(task, requests, replies_to(requests, text=" "))
    assert {row.scored.score.flags for row in empty} == {("empty",)}
    beyond = score_samples(task, requests, replies_to(requests, beyond=True))
    assert {row.scored.score.flags for row in beyond} == {("beyond_positions",)}


def test_the_loss_is_a_metric_of_its_group(task):
    requests = plan(task, "f", shuffled_control=False)
    rows = score_samples(task, requests, replies_to(requests))
    metrics = task_results(task, rows, missing=0, limited=False)["conditions"]["right"]["metrics"]
    assert metrics["answer_loss"]["value"] == 1.5
    assert metrics["answer_loss"]["n"] == 4
    assert metrics["answer_loss"]["unit"] == "nats"
    assert list(metrics["answer_loss"]["groups"]) == ["name"]
    assert metrics["exact_match"]["groups"]["kind"]["value"] == 1.0


@pytest.mark.parametrize(
    ("missing", "limited", "expected_n", "complete"),
    [(0, False, None, True), (1, False, None, False), (0, True, None, False), (0, False, 9, False)],
)
def test_complete_means_every_reply_of_every_sample(task, missing, limited, expected_n, complete):
    task = replace(task, expected_n=expected_n)
    requests = plan(task, "f", shuffled_control=False)
    rows = score_samples(task, requests, replies_to(requests))
    assert task_results(task, rows, missing=missing, limited=limited)["complete"] is complete


def test_differences_pair_only_samples_answered_in_both_conditions(task):
    requests = plan(task, "f", shuffled_control=True)
    replies = replies_to(requests)
    lost = next(r for r in requests if r.condition == "shuffled" and r.wants == "answer")
    del replies[lost.key]
    results = task_results(task, score_samples(task, requests, replies), missing=1, limited=False)
    assert results["differences"]["exact_match"]["n"] == len(task.samples) - 1
    json.dumps(results)


def test_a_run_that_names_no_profile_is_refused_in_words(tmp_path):
    arguments = {"data_root": str(tmp_path), "limit": None, "tasks": []}
    write_json(tmp_path / "run.json", {"fingerprint": "f", "arguments": arguments})
    with pytest.raises(ValueError, match=r"run.json names no profile: .* given again"):
        score_run(tmp_path)
