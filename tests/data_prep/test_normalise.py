"""The verb from file to file, with real pictures and the tiny model's processor."""

import base64
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep import normalise
from data_prep.__main__ import main as data_prep
from data_prep.normalising import files, work
from llava_compete.data import LlavaDataset, processor_fingerprint, read_rows
from tests import tiny
from tests.data_prep.formats_by_hand import (
    QUESTIONS,
    TALKS,
    as_llava,
    dropped_rows,
    names,
    run,
    run_whole,
    stats_of,
    write_lines,
    write_questions,
    write_talks,
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for index, name in enumerate(["a/0.png", "a/1.png", "b/2.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.draw(index, (20 + 9 * index, 12)).save(root / name)
    return root


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("write", "kind", "rows"),
    [
        (write_talks, "llava", TALKS),
        (write_talks, "sharegpt", TALKS),
        (write_talks, "openai", TALKS),
        (write_talks, "openai-data", TALKS),
        (write_talks, "openai-list", TALKS),
        (write_questions, "csv", QUESTIONS),
        (write_questions, "parquet-names", QUESTIONS),
        (write_questions, "parquet-bytes", QUESTIONS),
    ],
)
def test_every_format_trains_as_the_row_written_by_hand(
    write, kind, rows, suffix, checkpoints, processor, folder, tmp_path
):
    by_hand = LlavaDataset(write_lines(tmp_path / "hand.jsonl", rows), folder, processor)
    output = tmp_path / f"out{suffix}"
    written = run_whole(
        write(kind, tmp_path, folder), output, checkpoints["dense"], "--image_folder", folder
    )
    dataset = LlavaDataset(output, folder, processor)
    assert len(dataset) == len(rows)
    for index, row in enumerate(written):
        sample, expected = dataset[index], by_hand[index]
        assert set(sample) == set(expected)
        assert sample.pop("image_files") == names(row)
        expected.pop("image_files")  # the same pictures, maybe by other names
        for name, value in expected.items():
            assert torch.equal(sample[name], value), (index, name)
        assert row["length"] == expected["input_ids"].numel()
        assert row["length_by"] == processor_fingerprint(processor)
        assert row["id"] == rows[index]["id"]
        assert row["conversations"] == rows[index]["conversations"]
    assert dropped_rows(output) == []


def test_pictures_in_rows_are_one_file_each_below_a_folder_of_the_outputs_name(
    checkpoints, folder, tmp_path
):
    source = write_talks("openai-data", tmp_path, folder)
    kept = sorted(folder.rglob("*.*"))
    rows = run_whole(
        source, tmp_path / "mine.jsonl", checkpoints["dense"], "--image_folder", folder
    )
    new = [path for path in sorted(folder.rglob("*.*")) if path not in kept]
    assert len(new) == 3  # one of the four pictures is shown twice
    assert all(path.is_relative_to(folder / "mine") for path in new)
    assert {name for row in rows for name in names(row)} == {
        path.relative_to(folder).as_posix() for path in new
    }
    assert [row["source"] for row in rows] == ["mine", "mine", "text", "mine"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_second_time_changes_no_byte(suffix, checkpoints, folder, tmp_path):
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    run_whole(write_talks("sharegpt", tmp_path, folder), once, checkpoints["dense"])
    run_whole(once, twice, checkpoints["dense"])
    assert once.read_bytes() == twice.read_bytes()


def test_jsonl_and_parquet_hold_the_same(checkpoints, folder, tmp_path):
    source = write_talks("llava", tmp_path, folder)
    paths = [tmp_path / name for name in ("a.jsonl", "b.parquet", "c.jsonl")]
    for before, after in zip([source, *paths], paths, strict=False):
        run_whole(before, after, checkpoints["dense"])
    assert paths[0].read_bytes() == paths[2].read_bytes()
    table = pq.read_table(paths[1])
    assert table.schema.equals(files.SCHEMA)
    assert table["image"].to_pylist() == [names(row) or None for row in TALKS]


def test_what_is_dropped_is_counted_by_reason_and_kept_whole(checkpoints, folder, tmp_path, capsys):
    bad = [
        {"id": 7, "messages": []},
        as_llava("8", "Hello?", " "),
        as_llava("9", "<image>\nWhat?", "Two?"),
        as_llava("10", "What?", "It.", image="http://x.org/1.png"),
        as_llava("11", "What?", "\ud800"),
    ]
    source = write_lines(tmp_path / "in.jsonl", [*TALKS[:2], *bad, *TALKS[2:]])
    output = tmp_path / "out.jsonl"
    rows = run_whole(source, output, checkpoints["dense"])
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    dropped = dropped_rows(output)
    assert [(entry["row"], entry["id"], entry["reason"]) for entry in dropped] == [
        (2, "7", "another format"),
        (3, "8", "conversation"),
        (4, "9", "conversation"),
        (5, "10", "image on the web"),
        (6, "11", "text"),
    ]
    assert [entry["content"] for entry in dropped] == bad
    assert "the answer is empty" in dropped[1]["detail"]
    stats = stats_of(output)
    assert stats["rows"] == {"read": 9, "written": 4, "dropped": 5}
    assert {name: entry["rows"] for name, entry in stats["dropped"].items()} == {
        "conversation": 2,
        "another format": 1,
        "image on the web": 1,
        "text": 1,
    }
    assert stats["dropped"]["conversation"]["first"]["row"] == 3
    shown = capsys.readouterr().out
    assert "4 of 9 rows written, 5 dropped" in shown
    assert "dropped: 2 conversation" in shown


def test_the_status_says_whether_rows_were_dropped_if_asked_to(checkpoints, tmp_path):
    bad = as_llava("8", "Hello?", "")
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    source = write_lines(tmp_path / "in.jsonl", [TALKS[2], bad])
    words = ("--checkpoint", checkpoints["dense"])
    assert run(source, some, *words) == 0
    assert run(source, some, *words, "--strict", "--overwrite") == 1
    assert len(list(read_rows(some))) == 1
    assert run(write_lines(tmp_path / "in.jsonl", [TALKS[2]]), none, *words, "--strict") == 0
    assert run(write_lines(tmp_path / "in.jsonl", [bad]), none, *words, "--overwrite") == 1
    assert none.read_text() == ""


def test_bytes_and_dates_of_a_dropped_row_are_kept_too(checkpoints, tmp_path):
    stamp = pa.scalar(0, pa.timestamp("s"))
    table = pa.table({"question": ["q"], "image": [b"no picture"], "when": [stamp.as_py()]})
    pq.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.jsonl"
    words = ("--checkpoint", checkpoints["dense"], "--image_folder", tmp_path)
    assert run(tmp_path / "in.parquet", output, *words) == 1
    (entry,) = dropped_rows(output)
    assert base64.b64decode(entry["content"]["image"]["base64"]) == b"no picture"
    assert entry["content"]["when"] == "1970-01-01 00:00:00"


def test_the_counts_say_what_the_lengths_hold_for_and_what_is_left_out(
    checkpoints, processor, folder, tmp_path
):
    rows = [{**row, "model": "x"} for row in TALKS]
    rows[2]["conversations"][0]["weight"] = 0
    rows[3]["source"] = "mine"
    output = tmp_path / "out.jsonl"
    written = run_whole(write_lines(tmp_path / "in.jsonl", rows), output, checkpoints["dense"])
    del rows[2]["conversations"][0]["weight"]
    stats = stats_of(output)
    assert stats["measured_by"] == {
        "tokenizer": str(checkpoints["dense"].with_name("dense-parts") / "lm"),
        "tower": tiny.TOWER_NAME,
        "image_tokens": tiny.NUM_PATCHES,
        "fingerprint": processor_fingerprint(processor),
    }
    assert stats["format"] == "llava"
    assert stats["keys_left_out"] == {"model": 4, "weight of turns": 1}
    lengths = [row["length"] for row in written]
    assert stats["length"]["total"] == sum(lengths)
    assert stats["length"]["longest"] == max(lengths)
    assert stats["sources"] == {
        "a": {"rows": 2, "images": 3, "tokens": lengths[0] + lengths[1]},
        "mine": {"rows": 1, "images": 1, "tokens": lengths[3]},
        "text": {"rows": 1, "images": 0, "tokens": lengths[2]},
    }


def test_a_source_may_be_named_and_ids_are_made_of_the_files_name(checkpoints, tmp_path):
    rows = [tiny.say("a", "b"), {**tiny.say("c", "d"), "id": ""}, tiny.say("e", "f")]
    del rows[0]["id"]
    source = write_lines(tmp_path / "talks.jsonl", rows)
    written = run_whole(source, tmp_path / "out.jsonl", checkpoints["dense"], "--source", "mine")
    assert [row["id"] for row in written] == ["talks-0", "talks-1", "row-7"]
    assert {row["source"] for row in written} == {"mine"}


def test_a_length_limit_drops_what_training_refuses_and_counts_what_it_cuts(
    checkpoints, processor, folder, tmp_path
):
    rows = [
        TALKS[2],
        as_llava("long", "q" * 90, "a"),
        as_llava("turns", "a", "b", "c" * 60, "d"),
        as_llava("answer", "a", "b" * 90),
    ]
    output = tmp_path / "out.jsonl"
    written = run_whole(
        write_lines(tmp_path / "in.jsonl", rows), output, checkpoints["dense"], "--max_length", 70
    )
    assert [row["id"] for row in written] == ["3", "turns", "answer"]
    whole = LlavaDataset(tmp_path / "in.jsonl", folder, processor)
    assert [row["length"] for row in written] == [
        whole[index]["input_ids"].numel() for index in (0, 2, 3)
    ]  # of the rows as they are
    (entry,) = dropped_rows(output)
    assert (entry["id"], entry["reason"]) == ("long", "too long")
    assert stats_of(output)["cut_in_training"] == {
        "rows_that_lose_turns": 1,
        "exchanges_lost": 1,
        "answers_cut": 1,
    }
    assert stats_of(output)["max_length"] == 70


@pytest.mark.slow
def test_several_processes_give_the_same_in_order_and_read_only_a_little_ahead(
    checkpoints, tmp_path, monkeypatch
):
    rows = [tiny.make_row(index, picture=False) for index in range(150)]
    rows[77]["conversations"] = []
    source = write_lines(tmp_path / "in.jsonl", rows)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    run_whole(source, one, checkpoints["dense"])
    drawn, ahead = [], []
    read, spread = files.read, work.normalise

    def counted(file):
        for row in read(file):
            drawn.append(row)
            yield row

    def watched(*arguments):
        for done, result in enumerate(spread(*arguments)):
            ahead.append(len(drawn) - done)
            yield result

    monkeypatch.setattr(files, "read", counted)
    monkeypatch.setattr(work, "normalise", watched)
    monkeypatch.setattr(work, "CHUNK_ROWS", 10)
    monkeypatch.setattr(work, "PARALLEL_FROM", 30)
    monkeypatch.setattr(normalise, "FIRST_ROWS", 1)
    words = [source, two, "--checkpoint", checkpoints["dense"], "--workers", 2]
    data_prep(["normalise", *map(str, words)])
    assert one.read_bytes() == two.read_bytes()
    assert dropped_rows(one) == dropped_rows(two)
    assert len(dropped_rows(one)) == 1
    assert 10 < max(ahead) <= 2 * work.CHUNKS_AHEAD * 10


def test_the_weights_are_not_needed(checkpoints, tmp_path):
    light = tmp_path / "light"
    shutil.copytree(checkpoints["dense"], light, ignore=shutil.ignore_patterns("*.safetensors"))
    source = write_lines(tmp_path / "in.jsonl", TALKS)
    assert len(run_whole(source, tmp_path / "out.jsonl", light)) == 4
