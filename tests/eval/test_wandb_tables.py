import json
from dataclasses import replace

import pytest
import wandb
from PIL import Image

from eval.__main__ import main
from eval.rows import COLUMNS, read
from eval.task import load_task
from eval.wandb_tables import SAMPLES, headline, log_tables


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Where wandb writes: it has no account here, and asks for none."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it has read these variables for whoever used it before, and keeps them
    yield tmp_path / "wandb"
    wandb.teardown()


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def table(folder, name):
    (file,) = (folder / "files" / "media" / "table").glob(f"{name}_*.table.json")
    return json.loads(file.read_text())


def test_scores_samples_and_pictures_are_written_without_an_account(
    run_directory, data_root, offline
):
    tasks = [load_task("stamps_choice", data_root)]
    runs = [run_directory(n, tasks, lambda s, n=n: n) for n in ("A", "B")]
    assert main(["report", *map(str, runs), "--wandb"]) == 0
    folders = sorted(offline.glob("offline-run-*"))
    assert len(folders) == 2
    by_run = {table(folder, "scores")["data"][0][0]: folder for folder in folders}
    assert by_run.keys() == set(map(str, runs))
    folder = by_run[str(runs[0])]
    scores = table(folder, "scores")
    assert tuple(scores["columns"]) == COLUMNS
    (line,) = (dict(zip(COLUMNS, row, strict=True)) for row in scores["data"])
    assert (line["metric"], line["value"], line["status"]) == ("accuracy", 0.25, "complete")
    samples = table(folder, "samples/stamps_choice")
    assert tuple(samples["columns"]) == SAMPLES
    assert [row[0] for row in samples["data"]] == [s.id for s in tasks[0].samples]
    assert [row[SAMPLES.index("value")] for row in samples["data"]] == [1, 0, 0, 0]
    pictures = table(folder, "pictures")
    assert sorted(row[-1] for row in pictures["data"]) == [False, False, False, True]
    staged = [p for p in (offline.parent / "artifacts" / "staging").iterdir() if is_png(p)]
    colours = {Image.open(path).convert("RGB").getpixel((0, 0)) for path in staged}
    shown = [Image.open(path) for path in (data_root / "pictures").iterdir()]
    assert colours == {image.getpixel((0, 0)) for image in shown}


def test_a_headline_in_the_summary_says_what_it_is_of(run_directory, data_root):
    task = load_task("stamps_yesno", data_root)

    def of(task, reply, limit=None):
        results = read(run_directory("run", [task], reply, limit=limit)).results
        return headline(results["tasks"][task.name], limit)

    assert of(task, lambda s: "No") == ("accuracy", 0.5)
    assert of(task, lambda s: "No", limit=4) == ("accuracy (LIMITED to 4: n 4 of 8)", 0.5)
    lost = of(replace(task, expected_n=9), lambda s: "No")
    assert lost == ("accuracy (INCOMPLETE: n 8 of 9)", 0.5)
    assert of(task, lambda s: None) is None
    assert of(replace(task, unscored="a judge scores it"), lambda s: "No") is None


def test_nothing_is_sent_where_a_run_lacks_a_file(run_directory, data_root, offline):
    tasks = [load_task("stamps_choice", data_root)]
    runs = [run_directory(name, tasks, lambda s: "A") for name in ("A", "B")]
    (runs[1] / "samples" / "stamps_choice.jsonl").unlink()
    with pytest.raises(ValueError, match="`python -m eval score"):
        log_tables(runs)
    assert not offline.exists()
