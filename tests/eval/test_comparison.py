import csv
import json
from dataclasses import replace

import pytest

from eval.comparison import comparison
from eval.rows import COLUMNS, read, rows, write_csv
from eval.task import load_task
from llava_compete.report.blocks import Bullets, Table

PM = "\N{PLUS-MINUS SIGN}"


@pytest.fixture
def yesno(data_root):
    return load_task("stamps_yesno", data_root)


@pytest.fixture
def choice(data_root):
    return load_task("stamps_choice", data_root)


def tables(*runs):
    return [block for block in comparison(list(map(read, runs))) if isinstance(block, Table)]


def test_each_run_has_a_column_and_each_headline_a_line(run_directory, yesno, choice):
    knows = run_directory("knows", [yesno, choice], lambda sample: sample.references[0])
    says_no = run_directory("no", [yesno], lambda sample: "No")
    about, scores = tables(knows, says_no)
    assert [row[:2] for row in about.rows] == [(str(knows), "/m/knows"), (str(says_no), "/m/no")]
    assert scores.head == ("task", "headline", str(knows), str(says_no))
    assert scores.rows == (
        ("stamps_choice", "accuracy", f"100.0 {PM} 0.0 (n 4 of 4)", "-"),
        ("stamps_yesno", "accuracy", f"100.0 {PM} 0.0 (n 8 of 8)", f"50.0 {PM} 17.7 (n 8 of 8)"),
    )


def test_no_number_of_a_limited_or_incomplete_run_stands_alone(run_directory, yesno):
    limited = run_directory("limited", [yesno], lambda sample: "No", limit=4)
    lost = run_directory("lost", [yesno], lambda s: None if "red" in s.id else "No")
    nothing = run_directory("nothing", [yesno], lambda sample: None)
    short = run_directory("short", [replace(yesno, expected_n=9)], lambda sample: "No")
    cells = tables(limited, lost, nothing, short)[1].rows[0][2:]
    assert cells == (
        f"50.0 {PM} 25.0 (LIMITED to 4: n 4 of 8)",
        f"50.0 {PM} 20.4 (INCOMPLETE: n 6 of 8)",
        "no score (INCOMPLETE: n 0 of 8)",
        f"50.0 {PM} 17.7 (INCOMPLETE: n 8 of 9)",
    )


def test_a_task_that_a_judge_scores_has_no_number(run_directory, yesno):
    task = replace(yesno, unscored="GPT-4 scores it")
    (row,) = tables(run_directory("run", [task], lambda sample: "No"))[1].rows
    assert row[2] == "no score (UNSCORED: n 8 of 8)"


def test_flags_are_counted_for_each_run(run_directory, choice, yesno):
    vague = run_directory("vague", [choice], lambda s: "A" if "red" in s.id else "who knows")
    sure = run_directory("sure", [choice], lambda sample: "A")
    other = run_directory("other", [yesno], lambda sample: "No")
    flags = tables(vague, sure, other)[2]
    assert flags.rows == (("stamps_choice", "unparsed", "3 of 4", "0 of 4", "-"),)


def test_a_metric_that_lacks_something_says_so_beside_it(run_directory, yesno):
    task = replace(yesno, headline="f1")
    (row,) = tables(run_directory("run", [task], lambda sample: "No"))[1].rows
    assert row[2] == "0.0 (n 8 of 8, zero_division)"


@pytest.mark.parametrize("key", ["version", "description", "expected_n", "headline", "profile"])
def test_runs_that_do_not_compare_are_named(run_directory, yesno, key):
    more = {"headline": "f1", "version": 2, "description": "other", "expected_n": 9}
    other = yesno if key == "profile" else replace(yesno, **{key: more[key]})
    a = run_directory("a", [yesno], lambda sample: "No")
    profile = "lmms" if key == "profile" else "llava15"
    b = run_directory("b", [other], lambda sample: "No", profile=profile)
    (notes,) = [x for x in comparison([read(a), read(b)]) if isinstance(x, Bullets)]
    assert [note.startswith(f"stamps_yesno: the runs differ in {key} (") for note in notes.items]
    assert not [x for x in comparison([read(a), read(a)]) if isinstance(x, Bullets)]


def test_the_csv_has_every_number_with_what_it_is_of(run_directory, yesno, data_root, tmp_path):
    short = load_task("stamps_short", data_root)
    a = run_directory("a", [yesno, short], lambda sample: "square", limit=6)
    b = run_directory("b", [yesno], lambda sample: None)
    write_csv([read(a), read(b)], tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    metrics = read(a).results["tasks"]["stamps_yesno"]["conditions"]["right"]["metrics"]
    of_a = [line for line in lines if line["run"] == str(a) and line["task"] == "stamps_yesno"]
    assert {line["metric"]: float(line["value"]) for line in of_a} == {
        name: metric["value"] for name, metric in metrics.items()
    }
    assert {line["status"] for line in of_a} == {"LIMITED to 6"}
    (kind,) = [line for line in lines if line["group"] == "kind"]
    assert (kind["task"], kind["value"], kind["metric_n"]) == ("stamps_short", "1.0", "3")
    assert [line["metric"] for line in of_a if line["headline"] == "True"] == ["accuracy"]
    (nothing,) = [line for line in lines if line["run"] == str(b)]
    assert (nothing["status"], nothing["n"], nothing["value"]) == ("INCOMPLETE", "0", "")
    assert {tuple(row) for row in rows(read(a))} == {COLUMNS}


def test_results_without_a_profile_are_refused(run_directory, yesno):
    run = run_directory("run", [yesno], lambda sample: "No")
    results = json.loads((run / "results.json").read_text())
    del results["profile"]
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results.json names no profile: the command"):
        read(run)
