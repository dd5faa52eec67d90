"""Trainings over broken pictures: other rows are drawn, each is written down, counted and refused
past a share."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_compete.training.dry_run import describe
from llava_compete.training.output import DATA
from llava_compete.training.prepare import prepare
from llava_compete.training.skipped import SKIPPED
from tests import tiny
from tests.training.launches import train as train_processes
from tests.training.recipes import argv, make_recipe, train

ROWS = 8
BROKEN = 5  # three exchanges, as row 2 has, which is no longer


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    recipe = make_recipe(
        tmp_path,
        checkpoints["moe"],
        n=ROWS,
        trainable=["projector", "routers"],
        broken_images="skip",
        max_skipped_share=0.5,
        num_train_epochs=2,
    )
    (tmp_path / "images" / f"{BROKEN}.png").write_text("no picture")
    return recipe


def records(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(recipe["output_dir"]) / SKIPPED).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("changes", [{}, {"dataloader_num_workers": 2}, {"batching": "packed"}])
def test_a_broken_picture_trains_the_row_that_takes_its_place_and_is_written_down(
    recipe: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe |= {"max_length": 330, **changes}
    log = train(recipe)
    found = records(recipe)
    assert len(found) == 2, "once an epoch"
    for record in found:
        assert "5.png cannot be read" in record.pop("reason")
        step = record.pop("step")
        assert 1 <= step <= len(log)
        assert record == {"rank": 0, "row": BROKEN, "id": "row-5", "replaced_by": 2}
    steps = [entry["step"] for entry in log]
    so_far = [sum(record["step"] <= step for record in records(recipe)) for step in steps]
    assert [entry["data/skipped"] for entry in log] == so_far
    if changes.get("batching") == "packed":
        return  # packs are made for the length of the row that was meant
    rows = json.loads(Path(recipe["data_path"]).read_text())
    rows[BROKEN] = rows[2]
    Path(recipe["data_path"]).write_text(json.dumps(rows))
    again = train(recipe, broken_images="error", output_dir=str(tmp_path / "again"))
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in log]
    assert not any("data/skipped" in entry for entry in again)


def test_a_broken_picture_ends_the_run_where_nothing_else_is_asked_for(
    recipe: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=r"sample row-5: image .*5.png cannot be read"):
        train(recipe, broken_images="error")


def test_counts_go_on_after_a_resume(recipe: dict[str, Any]) -> None:
    recipe |= {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 4}
    whole = train(recipe)
    first = records(recipe)
    assert len(first) == 4
    output = Path(recipe["output_dir"])
    for step in (6, 9, 12, 15, 16):
        (output / f"checkpoint-{step}" / "trainer_state.json").unlink(missing_ok=True)
    saved = json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["skipped_rows"]["attributes"] == {
        "skipped": sum(record["step"] <= 3 for record in first),
        "drawn": 6,
    }
    again = train(recipe, resume="auto")
    assert [entry["data/skipped"] for entry in again] == [entry["data/skipped"] for entry in whole]
    assert records(recipe) == first, "rows of the steps that were done again are there twice"


def test_a_run_without_skipping_can_be_resumed_with_it(recipe: dict[str, Any]) -> None:
    images = Path(recipe["image_folder"])
    broken = (images / f"{BROKEN}.png").read_bytes()
    tiny.draw(BROKEN).save(images / f"{BROKEN}.png")
    recipe |= {"save_strategy": "steps", "save_steps": 2}
    train(recipe, broken_images="error")
    output = Path(recipe["output_dir"])
    for step in (4, 6, 8):
        (output / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (images / f"{BROKEN}.png").write_bytes(broken)
    assert train(recipe, resume="auto")[-1]["data/skipped"] >= 1


@pytest.mark.parametrize("share", [0.0, 0.12])
def test_more_skipped_rows_than_their_share_end_the_run_and_are_on_disk(
    recipe: dict[str, Any], share: float
) -> None:
    """One of 8 is 0.125; in the second epoch 2 of 16 at most."""
    with pytest.raises(ValueError, match=r"1 of \d rows drawn had a broken image.*max_skipped_sh"):
        train(recipe, max_skipped_share=share)
    assert [record["row"] for record in records(recipe)] == [BROKEN]


def test_one_broken_row_in_the_first_batch_ends_no_run_that_allows_it(
    recipe: dict[str, Any],
) -> None:
    recipe |= {"train_sampling_strategy": "sequential", "max_skipped_share": 0.125}
    rows = json.loads(Path(recipe["data_path"]).read_text())
    Path(recipe["data_path"]).write_text(json.dumps(rows[BROKEN:] + rows[:BROKEN]))
    assert [entry["data/skipped"] for entry in train(recipe)] == [1, 1, 1, 1, 2, 2, 2, 2]


def test_missing_pictures_are_counted_before_the_first_step_and_refused_past_the_share(
    recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 3):
        (Path(recipe["image_folder"]) / f"{index}.png").unlink()
    with pytest.raises(ValueError, match=r"sample row-0: image .*0.png does not .*; 1 more rows"):
        prepare(argv(recipe, broken_images="error"))
    with pytest.raises(ValueError, match=r"2 of 8 rows of .* more than max_skipped_share=0.2:"):
        prepare(argv(recipe, max_skipped_share=0.2))
    assert not (Path(recipe["output_dir"]) / DATA).exists()
    capsys.readouterr()
    prepare(argv(recipe))
    record = json.loads((Path(recipe["output_dir"]) / DATA).read_text())
    assert record["sources"]["images"]["missing_images"] == 2
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["missing", "images"]


def test_what_is_trained_on_is_printed_and_kept(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_compete.data import Exclusion, write_exclusions

    exclude = tmp_path / "exclude.json"
    data = Path(recipe["data_path"])
    write_exclusions(exclude, data, [Exclusion(BROKEN, "row-5", "damaged")], rows=ROWS)
    trainer, _ = prepare(argv(recipe, exclude=str(exclude), broken_images="error", max_length=120))
    record = json.loads((Path(recipe["output_dir"]) / DATA).read_text())
    lengths = trainer.train_dataset.lengths
    assert record["total"] == {
        "rows": 7,
        "tokens": int(lengths.sum()),
        "lost_turns": 1,
        "answers_cut": 0,
        "excluded": 1,
        "refused": 0,
        "missing_images": 0,
    }
    assert list(record["sources"]) == ["images", "text"]
    assert record["sources"]["text"]["tokens"] == lengths[1]
    assert (record["data"], record["exclude"]) == (str(data.resolve()), str(exclude.resolve()))
    assert (record["max_length"], record["broken_images"]) == (120, "error")
    shown = capsys.readouterr().out.splitlines()
    total = next(line.split() for line in shown if line.startswith("total"))
    assert total == ["total", "7", f"{int(lengths.sum()):,}", "1", "0", "1", "0", "0"]


def test_a_dry_run_over_a_broken_picture_shows_what_it_has(recipe: dict[str, Any]) -> None:
    for index in range(2, ROWS):
        (Path(recipe["image_folder"]) / f"{index}.png").write_text("no picture")
    trainer, _ = prepare(argv(recipe, dry_run=True, max_skipped_share=1.0))
    assert "(2, " in describe(trainer)
    assert not (Path(recipe["output_dir"]) / SKIPPED).exists()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_an_impossible_share_is_refused(recipe: dict[str, Any], share: float) -> None:
    with pytest.raises(ValueError, match=r"max_skipped_share=.* must be within 0 and 1"):
        prepare(argv(recipe, max_skipped_share=share))


def test_a_directory_with_what_a_start_left_is_taken_by_auto(recipe: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="had a broken image"):
        train(recipe, max_skipped_share=0.0)
    output = Path(recipe["output_dir"])
    assert {path.name for path in output.iterdir()} == {"recipe.yaml", DATA, SKIPPED}
    assert train(recipe, resume="auto")
    with pytest.raises(ValueError, match="is not empty"):
        prepare(argv(recipe, resume="never"))


@pytest.mark.slow
def test_two_ranks_count_together_and_each_writes_its_own(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """16 rows, 4 steps an epoch; 4 rows of three exchanges are broken, row 2 is whole."""
    rows, _ = tiny.write_rows(tmp_path, n=16, text_only=(1,))
    for index in (5, 8, 11, 14):
        (Path(recipe["image_folder"]) / f"{index}.png").write_text("no picture")
    recipe |= {"data_path": str(rows), "save_strategy": "steps", "save_steps": 4}
    file = argv(recipe, competition_rate=0)[0]
    log = train_processes(Path(file), Path(recipe["output_dir"]))
    found = records(recipe)
    assert sorted(record["row"] for record in found) == [5, 5, 8, 8, 11, 11, 14, 14]
    assert {record["rank"] for record in found} == {0, 1}
    so_far = [sum(record["step"] <= entry["step"] for record in found) for entry in log]
    assert [entry["data/skipped"] for entry in log] == so_far
    state = json.loads(
        (Path(recipe["output_dir"]) / "checkpoint-4" / "trainer_state.json").read_text()
    )
    assert state["stateful_callbacks"]["skipped_rows"]["attributes"] == {
        "skipped": so_far[3],
        "drawn": 16,
    }
