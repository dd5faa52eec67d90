"""Data files: every kind gives the same rows, and each fault is named with its place."""

import codecs
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_compete.data import files, read_rows
from tests import tiny
from tests.tiny import say

ROWS: list[dict[str, Any]] = [
    {**say("<image>Ä ☃ \U0001f600?", "é", id="r0"), "image": "0.png", "score": 0.5},
    {**say("a\u2028b\x85c", "d", "e", "f", id="r1"), "score": 1.0, "length": 12},
    {**say("g", "h", id="r2"), "image": "2.png", "score": -2.25},
]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), file)
    elif suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    else:
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_rows_that_were_written(tmp_path: Path, suffix: str) -> None:
    read = list(read_rows(write(tmp_path, suffix)))
    assert read == ROWS
    assert isinstance(read[0]["score"], float)
    assert suffix == ".parquet" or isinstance(read[1]["length"], int)


def test_a_line_break_inside_a_string_does_not_split_a_row(tmp_path: Path) -> None:
    assert len(list(read_rows(write(tmp_path, ".jsonl")))) == len(ROWS)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_byte_order_mark_is_no_fault(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, suffix)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert list(read_rows(file)) == ROWS


def test_white_space_before_the_list_is_no_fault(tmp_path: Path) -> None:
    file = write(tmp_path, ".json")
    file.write_bytes(b" \n" * files.BLOCK_BYTES + file.read_bytes() + b"\n\n")
    assert list(read_rows(file)) == ROWS


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_refused_by_name(tmp_path: Path, suffix: str, encoding: str) -> None:
    file = tmp_path / f"rows{suffix}"
    text = json.dumps(say("Où?", "Là."), ensure_ascii=False)
    file.write_text(f"[{text}]" if suffix == ".json" else f"\n{text}", encoding=encoding)
    wanted = {
        ".json": r"rows.json row number 0 is not UTF-8.*iconv",
        ".jsonl": r"rows.jsonl line 2 is not UTF-8.*iconv",
    }
    match = wanted[suffix] if encoding == "latin-1" else "is UTF-16 or UTF-32.*iconv"
    with pytest.raises(ValueError, match=f"(?s){match}"):
        list(read_rows(file))


@pytest.mark.parametrize(("before", "whole"), [('"id": "r0"', 0), ('"id": "r2"', 2), ("\n]", 3)])
def test_a_json_file_cut_in_the_middle_is_refused_after_its_whole_rows(
    tmp_path: Path, before: str, whole: int
) -> None:
    file = write(tmp_path, ".json")
    text = file.read_text()
    file.write_text(text[: text.rindex(before)])
    rows = read_rows(file)
    assert [next(rows) for _ in range(whole)] == ROWS[:whole]
    with pytest.raises(
        ValueError, match=rf"rows.json is not JSON after {whole} whole rows"
    ) as said:
        next(rows)
    assert "fetch or write it again" in str(said.value)


def test_a_parquet_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, ".parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"rows.parquet is not Parquet after 0 whole rows.*cut"):
        list(read_rows(file))


def test_a_cut_line_is_refused_with_its_number(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}\n\n{"id": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl line 3 is not JSON"):
        list(read_rows(file))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_row_that_is_too_long_is_refused_before_it_is_in_memory(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 2**17)
    long = say("a", "b" * 20 * 2**20, id="long")
    file = write(tmp_path, suffix, [ROWS[0], long, ROWS[1]])
    del long
    tracemalloc.start()
    rows = read_rows(file)
    assert next(rows) == ROWS[0] if suffix != ".parquet" else True
    where = "line 3" if suffix == ".jsonl" else "row number 1"
    with pytest.raises(ValueError, match=rf"rows{suffix} {where} has more than 131072 bytes"):
        list(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20


def test_a_row_just_within_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 3 * files.BLOCK_BYTES)
    row = {"id": "x" * (3 * files.BLOCK_BYTES - 20)}
    for suffix in (".json", ".jsonl"):
        assert list(read_rows(write(tmp_path, suffix, [ROWS[0], row, row]))) == [ROWS[0], row, row]


def test_a_hundred_megabyte_line_is_refused(tmp_path: Path) -> None:
    for suffix, begin in ((".jsonl", b'{"id": "'), (".json", b'[{"id": "')):
        file = tmp_path / f"rows{suffix}"
        with file.open("wb") as opened:
            opened.write(begin)
            for _ in range(100):
                opened.write(b"x" * 2**20)
        with pytest.raises(ValueError, match="has more than 16777216 bytes"):
            list(read_rows(file))


@pytest.mark.parametrize("text", ['{"id": 1}', '"text"', "3", "<html>", "\n {"])
def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"rows.json: a LLaVA file is a JSON list of rows.*jsonl"):
        list(read_rows(file))


@pytest.mark.parametrize("text", ['[{"id": 1}] {"id": 2}', '[{"id": 1},]', "[{'id': 1}]", "[}"])
def test_other_faults_of_json_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"rows.json is not JSON after [01] whole rows"):
        list(read_rows(file))


@pytest.mark.parametrize("value", ['"text"', "3", "null", "[1, 2]", "[" * 900 + "]" * 900])
def test_a_row_that_is_no_object_is_named(tmp_path: Path, value: str) -> None:
    for name, text, where in (
        ("rows.json", f'[{{"id": 1}}, {value}]', "row number 1"),
        ("rows.jsonl", f'{{"id": 1}}\n{value}\n', "line 2"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} {where} must be an object, found"):
            list(read_rows(tmp_path / name))


def test_brackets_without_end_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("[" * 10**6)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(read_rows(file))


@pytest.mark.parametrize(("suffix", "text"), [(".json", " [ ] "), (".jsonl", "\n \n")])
def test_a_file_without_rows_is_refused(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"rows{suffix} holds no rows"):
        list(read_rows(file))


def test_an_unknown_kind_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"read from .json, .jsonl, .parquet, not from '.csv'"):
        read_rows(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        read_rows(tmp_path / "nowhere.json")


def test_reading_takes_no_more_memory_for_a_longer_file(tmp_path: Path) -> None:
    peaks = []
    for n in (500, 5000):
        file, _ = tiny.write_rows(tmp_path / str(n), 0)
        row = say("a" * 500, "b" * 500)
        file.write_text(json.dumps([row] * n))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(file)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_parquet_file_of_pictures_is_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    picture = np.random.default_rng(0)
    with pq.ParquetWriter(file, pa.schema([("image", pa.binary())])) as table:
        for _ in range(16):
            images = [picture.bytes(2**19) for _ in range(8)]
            table.write_table(pa.table({"image": images}))
    before, most = pa.total_allocated_bytes(), 0
    for row in read_rows(file):
        assert len(row["image"]) == 2**19
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < file.stat().st_size / 3
