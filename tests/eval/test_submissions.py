"""What goes to servers and judges, from a run directory that was scored."""

import json

import pytest

from eval.__main__ import main
from eval.store import write_json, write_jsonl
from eval.submissions import WRITERS, write_submissions
from eval.task import TASKS, load_task
from tests.eval.tasks import judged
from tests.eval.test_xlsx import cells


@pytest.fixture
def run_of(tmp_path):
    """A run directory with the answers of one task, by the ids of its samples."""

    def build(task, answers, complete=True):
        run = tmp_path / "run"
        write_json(
            run / "run.json", {"arguments": {"tasks": ["pope", task], "data_root": str(tmp_path)}}
        )
        result = {"complete": complete, "n": len(answers), "expected_n": 3}
        write_json(run / "results.json", {"tasks": {task: result}})
        rows = [
            {"id": id, "condition": condition, "prompt": f"Question {id}", "text": text}
            for condition, words in (("right", answers), ("shuffled", dict.fromkeys(answers, "x")))
            for id, text in words.items()
        ]
        write_jsonl(run / f"samples/{task}.jsonl", rows)
        return run

    return build


def test_vqav2_answers_all_of_test2015_in_normal_form(run_of, tmp_path):
    run = run_of("vqav2_testdev", {"12": "Two, dogs.", "7": "The cat"})
    questions = tmp_path / "vqav2/llava_vqav2_mscoco_test2015.jsonl"
    write_jsonl(questions, [{"question_id": id} for id in (7, 9, 12)])
    (path,) = write_submissions(run)
    assert path == run / "submissions/vqav2_testdev.json"
    assert json.loads(path.read_text()) == [
        {"question_id": 7, "answer": "cat"},
        {"question_id": 9, "answer": ""},
        {"question_id": 12, "answer": "2 dogs"},
    ]
    write_jsonl(questions, [{"question_id": 7}])
    with pytest.raises(ValueError, match="lacks question 12, which was answered"):
        write_submissions(run)


def test_vqav2_names_the_file_that_it_needs(run_of):
    with pytest.raises(ValueError, match=r"vqav2/llava_vqav2_mscoco_test2015\.jsonl, of LLaVA's"):
        write_submissions(run_of("vqav2_testdev", {"7": "a cat"}))


@pytest.mark.parametrize(
    ("task", "answers", "written"),
    [
        (
            "vizwiz_vqa_test",
            {"VizWiz_test_00000000": "Unanswerable"},
            [{"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"}],
        ),
        ("docvqa_test", {"4": " $5.00\n"}, [{"questionId": 4, "answer": "$5.00"}]),
        (
            "mm_vet",
            {"v1_0": "x = -1 ", "v1_1": "zw\u00f6lf"},
            {"v1_0": "x = -1", "v1_1": "zw\u00f6lf"},
        ),
    ],
)
def test_the_other_json_forms(task, answers, written, run_of):
    (path,) = write_submissions(run_of(task, answers))
    assert json.loads(path.read_text(encoding="utf-8")) == written


def test_llava_w_has_a_line_an_answer_in_the_order_of_the_questions(run_of):
    (path,) = write_submissions(run_of("llava_w", {"0": "A cat.", "1": "A dog.", "10": "An owl."}))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [0, 1, 10]
    assert lines[1]["text"] == "A dog."
    assert lines[1]["prompt"] == "Question 1"
    assert lines[1].keys() == {
        *("question_id", "prompt", "text", "answer_id", "model_id", "metadata")
    }


COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)
MMBENCH = "\t".join(COLUMNS)


@pytest.mark.parametrize(
    ("task", "tsv"),
    [
        ("mmbench_en", "mmbench_dev_20230712.tsv"),
        ("mmbench_cn", "mmbench_dev_cn_20231003.tsv"),
    ],
)
def test_mmbench_has_the_rows_of_its_tsv_with_a_prediction(task, tsv, run_of, tmp_path):
    run = run_of(task, {"5": "B", "1000005": "A."})
    file = tmp_path / "mmbench" / tsv
    file.parent.mkdir()
    rows = ["5\tWhich?\t\tup\tdown\t\t\tB\tspace\tAAAA\tx\ty\tz\tdev"]
    rows += ["1000005\tWhich?\t\tdown\tup\t\t\tA\tspace\tAAAA\tx\ty\tz\tdev"]
    file.write_text("\n".join([MMBENCH, *rows]))
    (path,) = write_submissions(run)
    assert path.name == f"{task}.xlsx"
    assert cells(path) == [
        ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"],
        [5, "Which?", "up", "down", "", "", "B", "B", "dev"],
        [1000005, "Which?", "down", "up", "", "", "A.", "A", "dev"],
    ]
    file.write_text("\n".join([MMBENCH, *rows, rows[0].replace("5\t", "6\t", 1)]))
    with pytest.raises(ValueError, match="row 3: index 6 has no answer in the run"):
        write_submissions(run)


def test_an_incomplete_task_goes_nowhere(run_of):
    with pytest.raises(ValueError, match="mm_vet is not complete: 1 of 3 samples"):
        write_submissions(run_of("mm_vet", {"v1_0": "x"}, complete=False))


def test_a_run_without_such_a_task_is_refused_with_those_there_are(run_of):
    with pytest.raises(ValueError, match=r"no task with a form .* vqav2_testdev, vizwiz_vqa_test"):
        write_submissions(run_of("gqa", {"1": "x"}))


def test_samples_that_were_not_written_are_asked_for(run_of):
    run = run_of("mm_vet", {"v1_0": "x"})
    (run / "samples/mm_vet.jsonl").unlink()
    with pytest.raises(ValueError, match=r"`python -m eval score .*run` writes it"):
        write_submissions(run)


def test_the_verb_prints_the_paths_or_says_why_not(run_of, capsys):
    run = run_of("mm_vet", {"v1_0": "x"})
    assert main(["submit", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/submissions/mm_vet.json\n"
    with pytest.raises(SystemExit, match="2"):
        main(["submit", str(run.parent)])
    assert "is it a run directory" in capsys.readouterr().err


def test_every_form_belongs_to_a_task():
    assert set(WRITERS) <= set(TASKS)


LAYOUTS = ("official", "hub")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hallusionbench_has_the_rows_that_were_asked_with_the_prediction(layout, run_of, tmp_path):
    getattr(judged, f"hallusionbench_{layout}")(tmp_path)
    ids = [sample.id for sample in load_task("hallusionbench", tmp_path).samples]
    run = run_of("hallusionbench", {id: f" No, {id}.\n" for id in ids})
    (path,) = write_submissions(run)
    rows = json.loads(path.read_text())
    assert [row["model_prediction"] for row in rows] == [f"No, {id}." for id in ids]
    for row, asked in zip(rows, judged.HALLUSION, strict=True):
        known = dict(zip((*judged.HALLUSION_NAMES, "question", "gt_answer"), asked, strict=True))
        assert row.items() >= (known | {"gt_answer_details": "so it is"}).items()
        assert "image" not in row


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mathvista_has_the_problems_by_pid_with_query_and_response(layout, run_of, tmp_path):
    getattr(judged, f"mathvista_{layout}")(tmp_path)
    (path,) = write_submissions(run_of("mathvista", {"1": "1.2 g", "2": " (A)", "3": ""}))
    rows = json.loads(path.read_text())
    assert {pid: row["response"] for pid, row in rows.items()} == {
        "1": "1.2 g",
        "2": "(A)",
        "3": "",
    }
    for problem in judged.MATHVISTA:
        row = rows[problem["pid"]]
        assert row["query"] == f"Question {problem['pid']}"
        names = ("pid", "question", "choices", "question_type", "answer_type", "answer", "metadata")
        assert {name: row[name] for name in names} == {name: problem[name] for name in names}
        assert "decoded_image" not in row
    assert [repr(row["precision"]) for row in rows.values()] == ["1", "None", "None"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_and_rows_that_do_not_join_are_refused(layout, run_of, tmp_path):
    getattr(judged, f"hallusionbench_{layout}")(tmp_path)
    getattr(judged, f"mathvista_{layout}")(tmp_path)
    with pytest.raises(ValueError, match="lacks VD_x_9_9_9, which was answered"):
        write_submissions(run_of("hallusionbench", {"VD_x_9_9_9": "Yes"}))
    with pytest.raises(ValueError, match="pid 3 has no answer in the run"):
        write_submissions(run_of("mathvista", {"1": "x", "2": "y"}))
    with pytest.raises(ValueError, match="lacks 4, which was answered"):
        write_submissions(run_of("mathvista", dict.fromkeys("1234", "x")))
