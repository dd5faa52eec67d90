import json

import pytest

from eval.task import TASKS, Sample, Scored, Task, load_task, load_tasks

STAMPS = [name for name in TASKS if name.startswith("stamps_")]  # the others: tests/eval/tasks


@pytest.mark.parametrize("name", STAMPS)
def test_every_task_loads_and_a_perfect_answer_scores_one(name, data_root):
    task = load_task(name, data_root)
    assert task.name == name
    for sample in task.samples:
        score = task.score(sample.references[0], sample)
        assert set(score.values.values()) == {1.0}
        assert score.flags == ()


@pytest.mark.parametrize("name", STAMPS)
def test_the_headline_is_among_the_metrics(name, data_root):
    task = load_task(name, data_root)
    rows = [Scored(sample, task.score("x", sample)) for sample in task.samples]
    assert task.aggregate(rows)[task.headline].n == len(task.samples)


@pytest.mark.parametrize("name", STAMPS)
def test_absent_data_names_the_file_that_was_looked_for(name, tmp_path):
    with pytest.raises(ValueError, match=r"heldout/\w+\.jsonl"):
        load_task(name, tmp_path)


def test_an_unknown_task_is_refused_with_the_nearest_names(tmp_path):
    with pytest.raises(ValueError, match="'stamp_yesno'; did you mean stamps_yesno"):
        load_task("stamp_yesno", tmp_path)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("yesno", {"answer": "perhaps"}, "must be yes or no"),
        ("choice", {"answer": "E"}, "must be one of ABCD"),
        ("choice", {"answer": "red"}, "must be one of ABCD"),
        ("choice", {"options": ["one"]}, "1 options; 2 to 5"),
        ("choice", {"options": list("uvwxyz")}, "6 options; 2 to 5"),
        ("short", {"group": "colour"}, "must be kind or name"),
    ],
)
def test_rows_that_a_task_cannot_score_are_refused(task, changes, message, data_root):
    path = data_root / "heldout" / f"{task}.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]))
    with pytest.raises(ValueError, match=message):
        load_task(f"stamps_{task}", data_root)


def test_yes_and_no_are_read_in_any_case(data_root):
    path = data_root / "heldout" / "yesno.jsonl"
    path.write_text(path.read_text().replace('"yes"', '"Yes"').replace('"no"', '"No"'))
    task = load_task("stamps_yesno", data_root)
    assert {sample.references for sample in task.samples} == {("yes",), ("no",)}


def test_a_task_checks_itself():
    def task(samples, **more):
        given = {"max_new_tokens": 1} | more
        return Task(
            name="t",
            version=1,
            description="",
            samples=samples,
            score=None,
            aggregate=None,
            headline="",
            **given,
        )

    one = (Sample("1", "?", ("a",)),)
    with pytest.raises(ValueError, match="task t has no samples"):
        task(())
    with pytest.raises(ValueError, match="max_new_tokens=0 of t"):
        task(one, max_new_tokens=0)
    with pytest.raises(ValueError, match=r"answer loss of \['name'\]"):
        task(one, loss_groups=("name",))


def test_a_sample_is_hashable_whatever_its_meta():
    plain, told = Sample("1", "?", ("a",)), Sample("1", "?", ("a",), meta={"choices": ["a", "b"]})
    assert plain != told
    assert len({plain, told}) == 2


def test_what_any_of_several_tasks_lacks_is_named_at_once(data_root):
    (data_root / "heldout/yesno.jsonl").unlink()
    parts = r"(?s)looked for\n  \S+/heldout/yesno\.jsonl.*llava_pope_test\.jsonl.*'stamps_shrt'"
    with pytest.raises(ValueError, match=parts) as error:
        load_tasks(["stamps_yesno", "stamps_choice", "pope", "stamps_shrt"], data_root)
    assert "choice.jsonl" not in str(error.value)
    (task,) = load_tasks(["stamps_choice"], data_root)
    assert task == load_task("stamps_choice", data_root)


def test_a_prompt_with_the_mark_of_a_picture_is_refused_before_it_is_asked(data_root):
    path = data_root / "heldout" / "short.jsonl"
    path.write_text(path.read_text().replace("What is this?", "What is <image>?", 1))
    with pytest.raises(ValueError, match="prompt of sample red-name of stamps_short has <image>"):
        load_task("stamps_short", data_root)
