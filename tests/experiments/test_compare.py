"""Routers compared on a tiny model: jobs, resuming, refusals, what is scored."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from eval.store import write_json
from experiments.compare import command, job, settings, work
from experiments.compare.settings import Comparison, Job
from llava_compete import RoutingChange
from llava_compete.training.trainer import LlavaTrainer
from tests import tiny

SECONDS = ("train_seconds", "score_seconds")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkpoint with experts in the language model, rows, held-out questions and a recipe."""
    root = tmp_path_factory.mktemp("compare")
    checkpoint = tiny.make_checkpoint(root / "moe", parts=("language_model",), router="topk")
    rows, images = tiny.write_rows(root)
    (root / "heldout").mkdir()
    (root / "pictures").mkdir()
    questions = []
    for index in range(4):
        tiny.draw(index).save(root / "pictures" / f"{index}.png")
        picture = f"pictures/{index}.png"
        for group, answer in (("kind", "box"), ("name", f"box {index}")):
            question = {"id": f"{index}-{group}", "image": picture, "question": f"Its {group}?"}
            questions.append({**question, "answer": answer, "group": group})
    lines = "\n".join(map(json.dumps, questions))
    (root / "heldout" / "short.jsonl").write_text(lines)
    recipe = {
        "checkpoint": str(checkpoint),
        "data_path": str(rows),
        "image_folder": str(images),
        "trainable": ["projector", "experts", "routers"],
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "competition_rate": 0.5,
        "competition_warmup": 0,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": False,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture
def comparison(root, tmp_path):
    """topk, and a router that is trained in another form than it is scored in; two seeds."""
    return Comparison(
        recipe=(str(root / "recipe.yaml"),),
        routers=("topk", "usmoe"),
        seeds=(0, 1),
        tasks=("stamps_short",),
        data_root=root,
        out=tmp_path / "out",
        asked=("kind",),
        routed=3,
    )


@pytest.fixture(scope="module")
def command_line(root, tmp_path_factory):
    """Words of a comparison whose jobs have all been run."""
    out = tmp_path_factory.mktemp("results") / "out"
    words = ["--recipe", root / "recipe.yaml", "--tasks", "stamps_short", "--data_root", root]
    words += ["--out", out, "--routers", "compete,topk", "--seeds", 0, 1, "--timing_rounds", 2]
    line = [str(word) for word in words]
    command.main(line)
    return line


def without_seconds(record):
    return {name: value for name, value in record.items() if name not in SECONDS}


def test_the_command_leaves_table_figure_and_all_numbers(command_line, capsys):
    out = Path(command_line[command_line.index("--out") + 1])
    data = json.loads((out / "compare.json").read_text())
    assert [row["router"] for row in data["rows"]] == ["topk", "compete"]
    assert len(data["jobs"]) == 4
    report = (out / "report.md").read_text()
    assert "| compete " in report
    assert "interval excludes 0" in report
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert data["rows"][1]["cost"]["seconds"] > 0
    assert data["cost"]["competing_share"] == 0.5
    losses = [record["loss"] for record in data["jobs"] if record["router"] == "compete"]
    assert data["rows"][1]["figures"]["held-out loss"]["mean"] == pytest.approx(sum(losses) / 2)


def test_what_is_done_is_not_done_again(command_line, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("run again")

    monkeypatch.setattr(work, "run_job", never)
    monkeypatch.setattr("experiments.compare.cost.measure", never)
    command.main(command_line)
    assert "4 of 4 jobs are done before" in capsys.readouterr().out


def test_changed_settings_refuse_the_jobs_of_old_ones(command_line, capsys):
    with pytest.raises(SystemExit):
        command.main([*command_line, "--max_steps", "3"])
    error = capsys.readouterr().err
    assert "flags was [], is ['--max_steps', '3']" in error
    assert "Give another --out" in error


def test_a_job_gives_the_same_numbers_whenever_it_runs(comparison):
    settings.claim(comparison)
    jobs = comparison.jobs()
    first = {each: without_seconds(job.run_job(comparison, each)) for each in jobs}
    again = replace(comparison, out=comparison.out.with_name("again"))
    for each in reversed(jobs):
        assert without_seconds(job.run_job(again, each)) == first[each]
    assert first[Job("topk", 0)]["loss"] != first[Job("topk", 1)]["loss"]
    assert first[Job("topk", 0)]["loss"] != first[Job("usmoe", 0)]["loss"]


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one(comparison):
    lines = []
    work.run_all(comparison, 2, lines.append)
    alone = replace(comparison, out=comparison.out.with_name("alone"))
    work.run_all(alone, 1, lines.append)
    held, wanted = work.results(comparison), work.results(alone)
    for each in comparison.jobs():
        assert without_seconds(held[each]) == without_seconds(wanted[each]) | {
            "threads": held[each]["threads"]
        }
    assert lines[-1].startswith("[4/4] usmoe, seed 1: held-out loss ")


KILLED = """
import multiprocessing, os, signal, time
from experiments.compare.work import begin_worker

def work():
    begin_worker(1)
    print("worker", os.getpid(), flush=True)
    time.sleep(300)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(300)
"""


@pytest.mark.slow
def test_a_worker_ends_with_the_command_it_works_for(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(job.REPOSITORY)}
    words = [sys.executable, str(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as command:
        # Libraries print there too.
        line = next(line for line in command.stdout if line.startswith("worker "))
        too_long = threading.Timer(30, os.kill, (int(line.split()[1]), signal.SIGKILL))
        command.kill()
        too_long.start()
        command.stdout.read()  # the worker has the other end of the pipe, too: until it is gone
        ended = too_long.is_alive()
        too_long.cancel()
    assert ended


@pytest.mark.slow
def test_a_launched_job_gives_the_numbers_of_one_in_this_process(comparison, monkeypatch):
    monkeypatch.setenv("LAUNCHER", "python")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = job.run_job(comparison, Job("topk", 0))
    launched = replace(comparison, out=comparison.out.with_name("launched"), launch=True)
    assert without_seconds(job.run_job(launched, Job("topk", 0))) == without_seconds(here)


def test_routers_of_a_seed_see_the_same_batches(comparison, monkeypatch):
    seen = {}

    def note(trainer, model, inputs, *args, **kwargs):
        seen.setdefault(current, []).append(inputs["input_ids"].tolist())
        return whole_step(trainer, model, inputs, *args, **kwargs)

    whole_step = LlavaTrainer.training_step
    monkeypatch.setattr(LlavaTrainer, "training_step", note)
    for current in comparison.jobs():
        job.run_job(comparison, current)
    assert seen[Job("topk", 0)] == seen[Job("usmoe", 0)]
    assert seen[Job("topk", 1)] == seen[Job("usmoe", 1)]
    assert seen[Job("topk", 0)] != seen[Job("topk", 1)]


def test_losses_are_of_all_questions_and_answers_of_those_asked(comparison):
    record = job.run_job(comparison, Job("topk", 0))
    assert record["loss_samples"] == 8
    by_group = record["losses"]["stamps_short"]
    assert by_group.keys() == {"kind", "name"}
    assert record["loss"] == pytest.approx(sum(by_group.values()) / 2)
    assert record["scores"]["stamps_short"].keys() == {"exact_match kind"}
    assert 0 <= record["routing"]["language_model"]["entropy"] <= 1
    assert record["routing"]["language_model"]["experts_per_token"] == 2
    replies = comparison.folder(Job("topk", 0)) / "eval" / "predictions" / "stamps_short"
    assert sum(len(file.read_text().splitlines()) for file in replies.iterdir()) == 4


def test_a_router_that_looks_ahead_is_scored_by_token(comparison):
    each = Job("usmoe", 0)
    record = job.run_job(comparison, each)
    checkpoint = comparison.folder(each) / "checkpoint"
    assert record["scope"] == "token"
    loaded = job.load_causal(checkpoint, "float32", torch.device("cpu"))
    loaded.asked.model.check_causal()
    model, _ = job.load(checkpoint)
    assert model.config.moe_configs["language_model"].router_options["scope"] == "sequence"
    assert job.run_job(comparison, Job("topk", 0))["scope"] is None


def test_a_broken_training_is_begun_anew_and_a_broken_scoring_gone_on_with(comparison, monkeypatch):
    each = Job("topk", 0)
    checkpoint = comparison.folder(each) / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    whole = job.run_job(comparison, each)
    comparison.file(each).unlink()
    monkeypatch.setattr(job, "_train", None)  # would not be callable
    assert without_seconds(job.run_job(comparison, each)) == without_seconds(whole)


def test_weights_go_once_they_are_scored_if_that_is_asked(comparison):
    each = Job("topk", 0)
    job.run_job(replace(comparison, discard=True), each)
    assert comparison.file(each).is_file()
    assert not (comparison.folder(each) / "checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routers": ("topk", "competes")}, "'competes' is not known; did you mean compete"),
        ({"routers": ("compete",)}, "must name topk, which the others are held against"),
        ({"routers": ("topk", "topk")}, "routers=.* must be distinct"),
        ({"seeds": ()}, "seeds=.* must be distinct, and one at least"),
        ({"limit": 0}, "limit=0 must be at least 1"),
    ],
)
def test_an_impossible_comparison_is_refused(comparison, change, message):
    with pytest.raises(ValueError, match=message):
        replace(comparison, **change)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--router", "topk"), r"\['router'\] cannot be said here"),
        (("--loss_weights", "{}"), r"\['loss_weights'\] cannot be said here"),
        (("--max_step", "3"), "unknown flag --max_step; did you mean max_steps"),
        (("--checkpoint", "nowhere"), "nowhere is not a directory"),
        (("--data_path", "nowhere.json"), "nowhere.json does not exist"),
        (("--competition_max_layers", "0"), "raise max_layers"),
        (("--top_k", "5"), "top_k=5 must be between 1 and num_experts=4"),
    ],
)
def test_what_would_stop_a_job_is_refused_before_the_first(comparison, flags, message):
    recipe = (*comparison.recipe, *flags)
    with pytest.raises(ValueError, match=message):
        settings.check(replace(comparison, recipe=recipe, routers=("topk", "compete")))


def test_a_group_that_no_question_is_in_is_refused(comparison):
    with pytest.raises(ValueError, match="group 'colour'; groups: \\['kind', 'name'\\]"):
        settings.check(replace(comparison, asked=("colour",)))


def test_a_router_where_it_cannot_stand_is_refused(root, comparison, tmp_path):
    checkpoint = tiny.make_checkpoint(tmp_path / "both", router="topk")
    recipe = (*comparison.recipe, "--checkpoint", str(checkpoint))
    misplaced = replace(comparison, recipe=recipe, routers=("topk", "maskmoe"))
    with pytest.raises(ValueError, match="projector: router maskmoe chooses by a token's id"):
        settings.check(misplaced)
    settings.check(replace(misplaced, recipe=(*recipe, "--router_parts", "language_model")))


def test_a_job_under_other_settings_is_not_taken_for_this_one(comparison):
    settings.claim(comparison)
    settings.claim(replace(comparison, seeds=(0, 1, 2)))  # jobs may be added
    file = comparison.out / "settings.json"
    held = json.loads(file.read_text())
    write_json(file, held | {"checkpoint": "another"})
    with pytest.raises(ValueError, match="checkpoint was another, is"):
        settings.claim(comparison)


def test_gates_are_fresh_and_of_the_seed(root, comparison):
    words = comparison.argv(Job("topk", 3))
    change = RoutingChange(router="topk", fresh=True, seed=3000)
    assert words[words.index("--router_seed") + 1] == str(change.seed)
    assert words[words.index("--fresh_routers") + 1] == "true"
    assert words[words.index("--seed") + 1] == "3"


def test_no_partial_job_file_is_left(comparison, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        job.run_job(comparison, Job("topk", 0))
    assert not comparison.file(Job("topk", 0)).exists()
    shutil.rmtree(comparison.out)
