"""The table of a data file: what it holds, when it is made anew, and by how many processes."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlavaProcessor

from llava_compete.data import (
    Exclusion,
    RowTable,
    SourceCounts,
    measure,
    measuring,
    processor_fingerprint,
    read_rows,
    to_messages,
    write_exclusions,
)
from tests import tiny
from tests.tiny import say


def rows() -> list[dict[str, Any]]:
    """Nine rows of four sources; number 4 has no id."""
    found = [
        say("<image>a", "b", "c", "d", "e", "f", id=f"c{i}", image=f"coco/{i}.jpg")
        for i in range(3)
    ]
    found += [say("a", "b" * i, id=i) for i in (30, 20)]
    found += [say("<image>Ä ☃", "é", image="a.png"), say("x", "y", source="sharegpt", id="s")]
    found += [say("<image><image>", "b", image=["vg/1/a.png", "b.png"], id=f"v{i}") for i in (0, 1)]
    del found[4]["id"]
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows()))
    return path


@pytest.mark.parametrize("max_length", [None, 40, 35])
def test_each_row_stands_there_with_its_measure(
    file: Path, processor: LlavaProcessor, max_length: int | None
) -> None:
    table = RowTable.open(file, processor, max_length)
    expected = [measure(processor, to_messages(row), max_length) for row in rows()]
    assert len(table) == 9
    assert [table.row(i) for i in range(9)] == list(read_rows(file))
    assert [table.number(i) for i in range(9)] == list(range(9))
    assert table.lengths.tolist() == [one.length for one in expected]
    assert table.lengths.dtype == np.int32
    assert not table.lengths.flags.owndata
    counts = table.summary()
    assert list(counts) == ["coco", "text", "vg", "images", "sharegpt"]
    assert sum(count.tokens for count in counts.values()) == table.lengths.sum()
    lost = [one.exchanges_dropped > 0 for one in expected]
    assert counts["coco"].lost_turns == sum(lost[:3]) == (3 if max_length else 0)
    assert counts["text"].answers_cut == sum(one.answer_cut for one in expected[3:5])
    assert max_length != 40 or counts["text"].answers_cut == 2
    assert [count.rows for count in counts.values()] == [3, 2, 2, 1, 1]
    with pytest.raises(IndexError):
        table.row(9)


def test_a_table_travels_by_its_path(file: Path, processor: LlavaProcessor) -> None:
    table = RowTable.open(file, processor, None)
    packed = pickle.dumps(table)
    assert len(packed) < 500
    assert pickle.loads(packed).row(5) == table.row(5)


def test_excluded_rows_are_left_out_and_counted(
    tmp_path: Path, file: Path, processor: LlavaProcessor
) -> None:
    exclude = tmp_path / "exclude.json"
    exclusions = [Exclusion(4, "number 4", "short"), Exclusion(0, "c0", "gone")]
    write_exclusions(exclude, file, exclusions, rows=9)
    table = RowTable.open(file, processor, None, exclude=exclude)
    assert [table.number(i) for i in range(len(table))] == [1, 2, 3, 5, 6, 7, 8]
    assert table.row(0)["id"] == "c1"
    assert (table.summary()["coco"].rows, table.summary()["coco"].excluded) == (2, 1)
    assert (table.summary()["text"].rows, table.summary()["text"].excluded) == (1, 1)
    assert len(RowTable.open(file, processor, None)) == 9


def test_an_excluded_row_may_be_as_faulty_as_it_likes(
    tmp_path: Path, processor: LlavaProcessor
) -> None:
    file, exclude = tmp_path / "rows.json", tmp_path / "exclude.json"
    file.write_text(json.dumps([{"id": 1, "image": 3, "conversations": "none"}, say("a", "b")]))
    with pytest.raises(ValueError, match="sample 1: conversations must be a list"):
        RowTable.open(file, processor, None)
    write_exclusions(exclude, file, [Exclusion(0, "1", "roles")], rows=2)
    table = RowTable.open(file, processor, None, exclude=exclude)
    assert table.summary()["unknown"] == SourceCounts(0, 0, 0, 0, 1, 0)


def test_an_exclusion_of_a_row_with_another_id_is_refused(
    tmp_path: Path, file: Path, processor: LlavaProcessor
) -> None:
    exclude = tmp_path / "exclude.json"
    write_exclusions(exclude, file, [Exclusion(1, "c2", "gone")], rows=9)
    with pytest.raises(ValueError, match=r"calls row 1 of .* 'c2', its id is 'c1'"):
        RowTable.open(file, processor, None, exclude=exclude)


def test_a_table_is_made_once_and_anew_for_anything_it_depends_on(
    tmp_path: Path, file: Path, processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RowTable.open(file, processor, None, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr("llava_compete.data.table.write_table", None)  # it is not called
        again = RowTable.open(file, processor, None, cache_dir=tmp_path / "cache")
    assert again.path == first.path
    exclude = tmp_path / "exclude.json"
    write_exclusions(exclude, file, [Exclusion(1, "c1", "gone")], rows=9)
    paths = {first.path}
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    paths.add(RowTable.open(file, processor, 40, **options).path)
    paths.add(RowTable.open(file, processor, None, exclude=exclude, **options).path)
    other = tiny.compose_tiny(tmp_path / "other", make=tiny.make_timm_tower, scales=(1,))[1]
    other.tokenizer.add_tokens(["more"])
    paths.add(RowTable.open(file, other, None, **options).path)
    os.utime(file, ns=(0, 0))
    paths.add(RowTable.open(file, processor, None, **options).path)
    assert len(paths) == 5
    assert sorted((tmp_path / "cache").iterdir()) == sorted(paths)


def test_a_rows_own_length_is_believed_where_this_processor_made_it(
    tmp_path: Path, processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"length_by": processor_fingerprint(processor)}
    data = [
        say("a", "b", id="mine", length=23, **mine),
        say("a", "b", id="another's", length=7, length_by="0123456789abcdef"),
        say("a", "b", id="nobody's", length=8),
        say("a", "b", "c", "d", id="too long", length=46, **mine),
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(data))
    measured = []

    def counting(processor: LlavaProcessor, messages: Any, max_length: int | None) -> Any:
        measured.append(len(messages))
        return measure(processor, messages, max_length)

    monkeypatch.setattr(measuring, "measure", counting)
    assert RowTable.open(file, processor, 30).lengths.tolist() == [23, 23, 23, 23]
    assert measured == [2, 2, 4]
    assert RowTable.open(file, processor, None).lengths.tolist() == [23, 23, 23, 46]


@pytest.mark.slow
def test_several_processes_make_the_table_of_one(
    tmp_path: Path, processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    data = [say("<image>" + "a" * (i % 9), "b", id=i, image=f"coco/{i}.jpg") for i in range(60)]
    file.write_text("\n".join(map(json.dumps, data)))
    monkeypatch.setattr(measuring, "CHUNK_ROWS", 4)
    monkeypatch.setattr(measuring, "PARALLEL_FROM", 8)
    one, two = (
        RowTable.open(file, processor, 30, cache_dir=tmp_path / str(n), num_workers=n)
        for n in (1, 2)
    )
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.left_out.refused.total() > 0
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_text(file.read_text() + "\n" + json.dumps(say("a", "b", "c", id="bad")))
    with pytest.raises(ValueError, match="sample bad: human and gpt must alternate"):
        RowTable.open(faulty, processor, 30, cache_dir=tmp_path / "2", num_workers=2)
    assert list((tmp_path / "2").iterdir()) == [two.path]


def test_nothing_is_left_behind_where_a_row_is_faulty(
    tmp_path: Path, processor: LlavaProcessor
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([say("a", "b"), say("a")]))
    with pytest.raises(ValueError, match="sample row-7: human and gpt must alternate"):
        RowTable.open(file, processor, None, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, file: Path, processor: LlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touching(path: Path) -> Any:
        os.utime(path, ns=(0, 0))
        return read_rows(path)

    monkeypatch.setattr(measuring, "read_rows", touching)
    with pytest.raises(ValueError, match="has changed while it was read"):
        RowTable.open(file, processor, None, cache_dir=tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, file: Path, processor: LlavaProcessor
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"taken, which cannot be written.*LLAVA_COMPETE_CACHE"):
        RowTable.open(file, processor, None, cache_dir=tmp_path / "taken")


def test_a_value_that_is_not_json_is_refused_by_sample(
    tmp_path: Path, processor: LlavaProcessor
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"conversations": [say("a", "b")["conversations"]], "raw": [b"bytes"]})
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file)
    with pytest.raises(ValueError, match=r"sample number 0 of .*cannot be written as JSON.*bytes"):
        RowTable.open(file, processor, None)
