import pytest

from eval.plan import plan
from eval.predict import predict
from eval.report import table
from eval.score import score_samples, task_results
from eval.store import read_predictions
from eval.task import load_task


@pytest.fixture
def results_of(data_root, tmp_path, fake_model):
    """Results of one task, answered by ``reply``."""

    def results(name, reply, *, control=True, missing=0, limit=None):
        task = load_task(name, data_root)
        requests = plan(task, "f", shuffled_control=control)
        predict(fake_model(reply), task, requests, tmp_path)
        rows = score_samples(task, requests, read_predictions(tmp_path, name))
        scored = task_results(task, rows, missing=missing, limited=limit is not None)
        return {"limit": limit, "tasks": {name: scored}}

    return results


def looks(sample):
    """A model that knows its pictures: yes where the colour asked for is the colour shown."""
    return "Yes" if f"square {sample.images[0].stem}?" in sample.prompt else "No"


def cells(text, metric):
    lines = [line for line in text.splitlines() if f"| {metric} " in line]
    assert len(lines) == 1, text
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_a_model_that_looks_is_right_and_loses_with_the_wrong_picture(results_of):
    results = results_of("stamps_yesno", looks)
    task = results["tasks"]["stamps_yesno"]
    right = task["conditions"]["right"]["metrics"]["accuracy"]
    shuffled = task["conditions"]["shuffled"]["metrics"]["accuracy"]
    assert right["value"] == 1.0
    assert shuffled["value"] < 1.0
    assert task["differences"]["accuracy"]["value"] == right["value"] - shuffled["value"]
    assert cells(table(results), "accuracy")[2:4] == ["8", "100.0 +- 0.0"]
    assert cells(table(results), "accuracy")[-1] == "50.0"


def test_a_model_that_does_not_look_gains_nothing_from_the_right_picture(results_of):
    results = results_of("stamps_yesno", lambda sample: "No")
    assert cells(table(results), "accuracy")[3:] == ["50.0 +- 17.7", "50.0 +- 17.7", "+0.0", "50.0"]
    assert "f1: zero_division 1" in table(results)


def test_groups_and_the_answer_loss_have_rows_of_their_own(results_of):
    text = table(results_of("stamps_short", lambda sample: "Square."))
    assert cells(text, "exact_match, kind")[2:4] == ["4", "100.0 +- 0.0"]
    assert cells(text, "exact_match, name")[2:4] == ["4", "0.0 +- 0.0"]
    loss = cells(text, "answer_loss")
    assert loss[2] == "4"
    assert loss[5] == "+0.000"
    assert loss[6] == "-"


def test_without_the_control_its_columns_are_empty(results_of):
    text = table(results_of("stamps_choice", lambda sample: "A", control=False))
    assert cells(text, "accuracy")[4:6] == ["-", "-"]


def test_limited_and_incomplete_tasks_are_marked_wherever_they_stand(results_of):
    limited = table(results_of("stamps_choice", lambda sample: "A", limit=4))
    assert cells(limited, "accuracy")[0] == "stamps_choice (LIMITED to 4)"
    incomplete = table(results_of("stamps_choice", lambda sample: "A", missing=2))
    assert cells(incomplete, "accuracy")[0] == "stamps_choice (INCOMPLETE)"
    assert "2 replies are missing" in incomplete


def test_a_task_without_any_reply_still_has_a_row():
    nothing = {
        "headline": "accuracy",
        "limit": None,
        "missing": 8,
        "complete": False,
        "n": 0,
        "expected_n": 8,
        "conditions": {},
        "differences": {},
    }
    text = table({"limit": None, "tasks": {"t": nothing}})
    assert cells(text, "accuracy")[0] == "t (INCOMPLETE)"
    assert "8 replies are missing" in text


def test_flags_are_counted_by_condition(results_of):
    text = table(results_of("stamps_choice", lambda s: "A" if s.id.startswith("red") else "red"))
    assert "stamps_choice, right pictures, of 4 answers: unparsed 3." in text


@pytest.mark.parametrize(
    ("unit", "written"), [("share", "151073.0"), ("points", "1510.7"), ("nats", "1510.730")]
)
def test_a_number_is_written_in_its_unit(unit, written, results_of):
    results = results_of("stamps_choice", lambda sample: "A", control=False)
    metric = results["tasks"]["stamps_choice"]["conditions"]["right"]["metrics"]["accuracy"]
    metric |= {"value": 1510.73, "stderr": None, "unit": unit}
    assert cells(table(results), "accuracy")[3] == written


def test_every_line_of_the_table_has_the_same_width(results_of):
    text = table(results_of("stamps_short", lambda sample: "Square."))
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
