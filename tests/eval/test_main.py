import json
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from eval.__main__ import main
from eval.tasks import stamps_choice

TASKS = "stamps_yesno,stamps_choice,stamps_short"


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def served(monkeypatch, fake_model):
    """Stands in for eval.model; ``served(model)`` sets what a checkpoint loads to."""

    def serve(reply=lambda sample: sample.references[0], **more):
        model = fake_model(reply, **more)
        module = ModuleType("eval.model")
        module.LlavaCompete = type("Loader", (), {"load": lambda *args: model})
        monkeypatch.setitem(sys.modules, "eval.model", module)
        return model

    return serve


@pytest.fixture
def run(checkpoint, data_root):
    def run(out, *more, tasks=TASKS, checkpoint=checkpoint):
        return main(
            [
                "run",
                *("--checkpoint", str(checkpoint)),
                *("--data_root", str(data_root)),
                *("--tasks", tasks),
                *("--out", str(out)),
                *more,
            ]
        )

    return run


def read(path):
    return json.loads(path.read_text())


def test_a_run_leaves_its_files_and_prints_the_table(run, served, tmp_path, capsys):
    served()
    out = tmp_path / "run"
    assert run(out) == 0
    assert "| stamps_choice | accuracy" in capsys.readouterr().out
    record = read(out / "run.json")
    assert record["status"] == "success"
    assert record["seconds"] >= 0
    notes = record["tasks"]["stamps_yesno"]
    assert notes["asked"] == 16
    assert record["tasks"]["stamps_choice"]["pictures_shown"] == 8  # of this task alone
    work = {"pictures_shown": 16, "pictures_seen": 8, "tokens_saved": 0}
    assert notes == {"asked": 16, "seconds": notes["seconds"]} | work
    results = read(out / "results.json")
    assert all(task["complete"] for task in results["tasks"].values())
    lines = (out / "samples" / "stamps_short.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert json.loads(lines[0])["images"] == ["pictures/red.png"]
    assert not list(out.rglob("*.partial"))


def test_equal_runs_have_equal_bytes_whatever_the_batch_size(run, served, tmp_path):
    written = []
    for name, size in (("a", "16"), ("b", "16"), ("c", "1"), ("d", "5")):
        served(lambda sample: sample.images[0].stem)
        run(tmp_path / name, "--batch_size", size)
        files = sorted((tmp_path / name / "samples").iterdir())
        written.append([p.read_bytes() for p in (tmp_path / name / "results.json", *files)])
    assert all(other == written[0] for other in written)


def test_results_hold_no_place_and_no_time(run, served, tmp_path):
    served()
    run(tmp_path / "run")
    text = (tmp_path / "run" / "results.json").read_text()
    assert str(tmp_path) not in text
    assert "second" not in text


def test_a_second_run_asks_nothing_and_loads_nothing(run, served, tmp_path, monkeypatch):
    served()
    run(tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setitem(sys.modules, "eval.model", None)  # an import would fail
    assert run(tmp_path / "run") == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_crash_is_recorded_and_the_same_command_goes_on(run, served, tmp_path):
    out = tmp_path / "run"
    served(crash_after=6)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(out, "--batch_size", "3")
    record = read(out / "run.json")
    assert (record["status"], record["error"]) == ("error", "RuntimeError: out of memory")
    assert main(["score", str(out)]) == 1
    again = served()
    assert run(out, "--batch_size", "3") == 0
    assert len(again.asked) == 16 + 8 + 24 - 6


def test_a_run_on_another_number_of_samples_than_the_benchmarks_is_incomplete(
    run, served, tmp_path, monkeypatch
):
    load = stamps_choice.load

    def published(root, profile):
        return replace(load(root, profile), expected_n=5)

    monkeypatch.setattr(stamps_choice, "load", published)
    out = tmp_path / "run"
    served()
    assert run(out, tasks="stamps_choice") == 1
    record = read(out / "run.json")
    assert (record["status"], record["missing"]) == ("incomplete", 0)
    assert read(out / "results.json")["tasks"]["stamps_choice"]["complete"] is False


def test_a_failed_run_leaves_no_results_of_an_earlier_one(run, served, tmp_path):
    out = tmp_path / "run"
    served()
    run(out, tasks="stamps_choice")
    served(crash_after=0)
    with pytest.raises(RuntimeError):
        run(out)
    assert not (out / "results.json").exists()


def test_another_model_is_refused_in_the_same_directory(run, served, tmp_path, checkpoint, capsys):
    served()
    run(tmp_path / "run")
    (checkpoint / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(SystemExit) as error:
        run(tmp_path / "run")
    assert error.value.code == 2
    assert "holds the answers of another model" in capsys.readouterr().err


def test_a_limited_run_is_marked_and_never_complete(run, served, tmp_path, capsys):
    served()
    assert run(tmp_path / "run", "--limit", "2") == 0
    assert "(LIMITED to 2)" in capsys.readouterr().out
    results = read(tmp_path / "run" / "results.json")
    assert results["limit"] == 2
    assert not any(task["complete"] for task in results["tasks"].values())
    whole = served()
    assert run(tmp_path / "run") == 0
    assert len(whole.asked) < 16 + 8 + 24
    assert all(t["complete"] for t in read(tmp_path / "run" / "results.json")["tasks"].values())


def test_the_profile_is_recorded_and_an_unknown_one_refused(run, served, tmp_path, capsys):
    served()
    run(tmp_path / "run", tasks="stamps_yesno")
    assert read(tmp_path / "run" / "run.json")["arguments"]["profile"] == "llava15"
    assert read(tmp_path / "run" / "results.json")["profile"] == "llava15"
    with pytest.raises(SystemExit) as error:
        run(tmp_path / "other", "--profile", "lmms")
    assert error.value.code == 2
    assert "profile='lmms': stamps_yesno has llava15" in capsys.readouterr().err


def test_without_the_control_each_question_is_asked_once(run, served, tmp_path):
    model = served()
    run(tmp_path / "run", "--no-shuffled_control", tasks="stamps_yesno")
    assert len(model.asked) == len(set(model.asked)) == 8


def test_score_needs_no_torch_and_gives_the_same_bytes(run, served, tmp_path):
    served()
    out = tmp_path / "run"
    run(out)
    before = (out / "results.json").read_bytes()
    (out / "results.json").unlink()
    code = (
        "import sys; from eval.__main__ import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules); sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code, "score", str(out)], check=True)
    assert (out / "results.json").read_bytes() == before


def test_score_finds_moved_data(run, served, tmp_path, data_root):
    served()
    run(tmp_path / "run")
    moved = data_root.rename(tmp_path / "moved")
    assert main(["score", str(tmp_path / "run"), "--data_root", str(moved)]) == 0


def test_report_prints_a_table_for_each_run(run, served, tmp_path, capsys):
    served()
    for name in ("a", "b"):
        run(tmp_path / name, tasks="stamps_yesno")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    side_by_side, *parts = text.split("\n## ")
    names = [tmp_path / name for name in ("a", "b")]
    assert f"| task | headline | {names[0]} | {names[1]} |" in side_by_side
    assert "100.0 \N{PLUS-MINUS SIGN} 0.0 (n 8 of 8)" in side_by_side
    for path, part in zip(names, parts, strict=True):
        assert part.startswith(f"{path}\n")
        assert part.count("| stamps_yesno | accuracy") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["report", "nowhere"], "no results.json in nowhere"),
        (["score", "nowhere"], "no run.json in nowhere"),
        (["run", "--tasks", "a,a"], "names a task twice"),
        (["run", "--batch_size", "0"], "must be a whole number above 0"),
        (["run", "--check", "x"], "required"),
    ],
)
def test_a_wrong_command_is_refused_in_words(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_task_is_refused_before_anything_is_written(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(tmp_path / "run", tasks="stamps_yes")
    assert error.value.code == 2
    assert "did you mean stamps_yesno" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
