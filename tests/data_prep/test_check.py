"""What check finds in a planted set, what it repairs and leaves out, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import check
from data_prep.checking import findings, scan
from data_prep.checking.splits import SPLITS
from llava_compete.data import LlavaDataset
from llava_compete.data.exclude import read_exclusions
from tests.data_prep import planted
from tests.data_prep.checked import ROWS, files_of, good_set, run, write


def exit_code(folder: Path, *options: str, file: str = "mix.json") -> int:
    argv = [str(folder / file), "--root", str(folder / "pictures"), "--workers", "2", *options]
    with pytest.raises(SystemExit) as ended:
        check.main(argv)
    return ended.value.code


def test_every_planted_fault_is_found_and_none_is_invented(planted_set):
    folder, expected = planted_set
    report = run(folder, report="once")
    found = planted.found(folder / "once")
    assert found.faults == expected.faults
    assert found.notes == expected.notes
    assert found.repairs == expected.repairs
    assert report == json.loads((folder / "once" / "report.json").read_text())
    assert report["rows"] == ROWS
    assert sum(kind["count"] for kind in report["faults"].values()) == len(expected.faults)
    assert report["repairs"] == {"possible": len(expected.repairs), "done": 0, "refused": 0}
    faulty = {row for row, _, _ in expected.faults}
    assert sum(source["faulty"] for source in report["sources"].values()) == len(faulty)


def test_all_kinds_of_faults_are_planted(planted_set):
    _, expected = planted_set
    kinds = {*findings.ROW_KINDS, findings.MALFORMED, findings.MISSING, findings.OUTSIDE}
    assert {kind for _, kind, _ in expected.faults} == kinds | {findings.BROKEN, "repeated_row"}


def test_a_fault_names_its_row_and_says_what_to_do(planted_set):
    folder, _ = planted_set
    run(folder, report="named")
    lines = map(json.loads, (folder / "named" / "faults.jsonl").read_text().splitlines())
    rows = json.loads((folder / "mix.json").read_text())
    empty = [line for line in lines if "the answer is empty" in line["message"]]
    assert empty
    for line in empty:
        assert line["id"] == str(rows[line["row"]]["id"])
        assert line["message"].startswith("turn 2: the answer is empty; drop")
        assert line["source"] == rows[line["row"]]["image"].split("/")[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_of_the_same_rows_have_the_same_faults(tmp_path, suffix):
    rows = good_set(tmp_path)
    rows[2]["conversations"][1]["value"] = ""
    rows[5]["image"] = "vg/none.jpg"
    write(tmp_path, rows)
    run(tmp_path)
    if suffix == ".jsonl":
        (tmp_path / "mix.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mix.parquet")
    run(tmp_path, file=f"mix{suffix}")
    expected = planted.found(tmp_path / "mix.json.check")
    assert expected.faults == {(2, "empty_text", ""), (5, "missing_image", "vg/none.jpg")}
    assert planted.found(tmp_path / f"mix{suffix}.check") == expected


def test_the_number_of_workers_changes_no_byte(own_set):
    run(own_set, report="two")
    run(own_set, "--workers", "3", report="three")
    assert files_of(own_set / "two") == files_of(own_set / "three")


# How it ends.


def test_a_good_set_ends_with_0_and_its_summary(tmp_path, capsys):
    good_set(tmp_path)
    assert exit_code(tmp_path) == 0
    assert "mix.json: 9 rows, 9 pictures" in (out := capsys.readouterr().out)
    assert "faults: none" in out
    assert "notes: none" in out


def test_notes_alone_end_with_0(tmp_path):
    rows = good_set(tmp_path)
    rows[3]["id"] = rows[4]["id"] = "one"
    write(tmp_path, rows)
    assert exit_code(tmp_path) == 0
    assert exit_code(tmp_path, "--unique_ids") == 1
    assert planted.found(tmp_path / "mix.json.check").faults == {(4, "repeated_id", "")}


def test_faults_end_with_1_and_are_shown(planted_set, capsys):
    folder, _ = planted_set
    assert exit_code(folder, "--report", str(folder / "shown")) == 1
    out = capsys.readouterr().out
    assert "the answer is empty" in out
    assert "repairs: 6 possible (--repair)" in out


def test_of_many_sources_the_largest_are_shown(tmp_path, capsys):
    rows = good_set(tmp_path, num_rows=30)
    for number, row in enumerate(rows):
        row["source"] = f"folder{number % 25:02}"
    rows[24]["image"] = "vg/none.jpg"
    write(tmp_path, rows)
    assert exit_code(tmp_path) == 1
    out = capsys.readouterr().out
    assert "folder04" in out
    assert "  5 others               5 rows         1 faulty" in out


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    good_set(tmp_path)
    monkeypatch.setattr(scan, "scan", stopped)
    assert exit_code(tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"id": "1", "conversations": [', "is not JSON after 0 whole rows"),
        ('[{"id": "\u00e9"}]'.encode("latin-1"), "is not UTF-8"),
        (b'{"id": "1"}', "a LLaVA file is a JSON list of rows"),
        (b"[1]", "row number 0 must be an object"),
        (b"[]", "holds no rows"),
        (None, "mix.json"),
    ],
)
def test_a_file_that_cannot_be_read_ends_with_2(tmp_path, capsys, content, words):
    (tmp_path / "pictures").mkdir()
    if content is not None:
        (tmp_path / "mix.json").write_bytes(content)
    assert exit_code(tmp_path) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_cut_late_is_refused_before_a_picture_is_opened(own_set, monkeypatch):
    text = (own_set / "mix.json").read_text()
    (own_set / "mix.json").write_text(text[:-100])
    monkeypatch.setattr(scan, "inspect_chunk", None)
    with pytest.raises(ValueError, match="is not JSON after 599 whole rows"):
        run(own_set)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "0"), "workers=0 must be at least 1"),
        (("--root", "/none/there"), "root=/none/there is not a folder"),
        (("--linked_folder", "/none/there"), "linked_folders: /none/there is not a folder"),
    ],
)
def test_wrong_options_end_with_2(tmp_path, capsys, options, words):
    good_set(tmp_path)
    assert exit_code(tmp_path, *options) == 2
    assert words in capsys.readouterr().err


def test_a_linked_folder_that_is_named_may_be_entered(tmp_path):
    rows = good_set(tmp_path)
    (tmp_path / "pictures" / "vg").rename(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "vg").symlink_to(tmp_path / "elsewhere")
    assert run(tmp_path)["faults"]["outside_root"]["count"] == len(rows)
    assert run(tmp_path, "--linked_folder", str(tmp_path / "elsewhere"))["faults_left"] == 0


# Counts of a known split.


def test_each_source_of_the_mix_whose_count_differs_is_a_fault(tmp_path):
    good_set(tmp_path)
    name = "llava_v1_5_mix665k.json"
    (tmp_path / "mix.json").rename(tmp_path / name)
    report = run(tmp_path, file=name)
    assert report["split"] == "llava_mix665k"
    assert report["faults"]["source_count"]["count"] == len(SPLITS["llava_mix665k"])
    assert report["sources"]["vg"] == {"rows": 9, "faulty": 0, "expected": 86_417}
    assert report["sources"]["coco"] == {"rows": 0, "faulty": 0, "expected": 364_100}
    lines = (tmp_path / f"{name}.check" / "faults.jsonl").read_text()
    assert "source coco has 0 rows, llava_mix665k has 364100" in lines


def test_counts_as_expected_are_no_fault(tmp_path, monkeypatch):
    good_set(tmp_path)
    monkeypatch.setitem(SPLITS, "llava_mix665k", {"vg": 9})
    assert run(tmp_path, "--expect", "llava_mix665k")["faults"] == {}


def test_the_known_split_adds_up():
    assert sum(SPLITS["llava_mix665k"].values()) == 665_298


# Rows left out, pictures repaired.


def test_faulty_rows_are_written_as_an_exclusion_file(planted_set, tmp_path):
    folder, expected = planted_set
    drop = tmp_path / "drop.json"
    assert exit_code(folder, "--drop", str(drop), "--report", str(tmp_path / "report")) == 1
    excluded = read_exclusions(drop, folder / "mix.json")
    assert [exclusion.row for exclusion in excluded] == sorted(
        {row for row, _, _ in expected.faults}
    )
    rows = json.loads((folder / "mix.json").read_text())
    for exclusion in excluded:
        kinds = {kind for row, kind, _ in expected.faults if row == exclusion.row}
        assert {kind for kind in kinds if f"{kind}: " in exclusion.reason} == kinds
        if isinstance(rows[exclusion.row].get("id"), str):
            assert exclusion.id == rows[exclusion.row]["id"]


def test_training_draws_every_row_that_is_left_and_none_that_is_not(own_set, processor):
    drop = own_set / "drop.json"
    run(own_set, "--drop", str(drop))
    folders = own_set / "mix.json", own_set / "pictures"
    dataset = LlavaDataset(*folders, processor, exclude=drop)
    excluded = read_exclusions(drop, own_set / "mix.json")
    assert len(dataset) == ROWS - len(excluded)
    assert dataset.check().total() == 0
    for index in range(len(dataset)):
        assert dataset[index]["input_ids"].numel()
    with pytest.raises(ValueError, match="sample"):
        LlavaDataset(*folders, processor)


def test_a_repaired_set_has_no_more_to_repair_and_lost_nothing(own_set, planted_set):
    before = files_of(own_set / "pictures")
    first = run(own_set, "--repair", "--drop", str(own_set / "drop.json"))
    assert first["repairs"] == {"possible": 0, "done": 6, "refused": 0}
    assert first["faults"]["missing_image"]["repaired"] == 3
    assert first["notes"]["wrong_extension"]["repaired"] == 3
    after = files_of(own_set / "pictures")
    _, expected = planted_set
    rewritten = {file for file, action, _ in expected.repairs if action.startswith("rewritten")}
    assert {file for file in before if before[file] != after[file]} == rewritten
    for file, _, beside in expected.repairs:
        assert findings.content_format(own_set / "pictures" / file) == "JPEG"
        assert after[beside] == before[file if file in rewritten else beside]
    assert len(after) == len(before) + len(expected.repairs)
    repaired = {file for file, _, _ in expected.repairs}
    dropped = {
        exclusion.row for exclusion in read_exclusions(own_set / "drop.json", own_set / "mix.json")
    }
    assert dropped == {row for row, _, file in expected.faults if file not in repaired}
    second = run(own_set, "--repair")
    assert second["repairs"] == {"possible": 0, "done": 0, "refused": 0}
    assert second["faults_left"] == first["faults_left"]
    assert files_of(own_set / "pictures") == after


def test_a_set_whose_faults_are_all_repaired_ends_with_0(tmp_path):
    good_set(tmp_path)
    painter = planted.Painter(seed=2)
    (tmp_path / "pictures" / "vg" / "3.jpg").unlink()
    (tmp_path / "pictures" / "vg" / "3.gif").write_bytes(painter.animated("GIF"))
    assert exit_code(tmp_path) == 1
    assert exit_code(tmp_path, "--repair") == 0
    assert exit_code(tmp_path) == 0
