import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from eval.readers import pictured, tables
from eval.readers.pictured import read_pictured
from eval.readers.pictures import keep_picture
from tests.eval.tasks.files import cell, picture, put_table

FILE = "hub/set/test-0.parquet"
MEMORY = f".pictures/tables/{FILE}.json"


@pytest.fixture
def read(monkeypatch):
    """The columns that were read of a table, in order."""
    asked = []
    whole = tables.read_table

    def noted(files, columns, *rest):
        asked.append(list(columns))
        return whole(files, columns, *rest)

    monkeypatch.setattr(pictured, "read_table", noted)
    return asked


def put_rows(root, numbers, file=FILE):
    rows = [{"id": i, "image": cell(picture(n))} for i, n in enumerate(numbers)]
    put_table(root / file, rows)


def kept(root, file=FILE):
    rows = read_pictured(root, [root / file], ("id", "image"))
    return [(row["id"], keep_picture(root, where, row["image"])) for where, row in rows]


def digests(numbers):
    return [hashlib.sha256(picture(number)).hexdigest() for number in numbers]


@pytest.mark.parametrize("file", [FILE, "hub/set/test-0.arrow"])
def test_the_second_reading_leaves_the_pictures_unread(tmp_path, read, file):
    numbers = [*range(5), 2, 2]
    put_rows(tmp_path, numbers, file)
    first = kept(tmp_path, file)
    assert [path.stem for _, path in first] == digests(numbers)
    assert read == [["id"], ["image"]]
    read.clear()
    assert kept(tmp_path, file) == first
    assert read == [["id"]]


def test_a_table_that_changed_is_read_anew(tmp_path, read):
    put_rows(tmp_path, [1, 2])
    kept(tmp_path)
    put_rows(tmp_path, [1, 3, 4])
    assert [path.stem for _, path in kept(tmp_path)] == digests([1, 3, 4])
    read.clear()
    kept(tmp_path)
    assert read == [["id"]]


def test_a_table_of_the_same_size_whose_time_was_set_back_is_not_seen_to_differ(tmp_path):
    put_rows(tmp_path, [1, 2])
    before, first = (tmp_path / FILE).stat(), kept(tmp_path)
    put_rows(tmp_path, [3, 2])
    assert (tmp_path / FILE).stat().st_size == before.st_size
    os.utime(tmp_path / FILE, ns=(0, before.st_mtime_ns))
    assert kept(tmp_path) == first


def test_a_kept_picture_that_was_deleted_is_read_again(tmp_path, read):
    put_rows(tmp_path, range(4))
    first = kept(tmp_path)
    first[1][1].unlink()
    read.clear()
    assert kept(tmp_path) == first
    assert first[1][1].read_bytes() == picture(1)
    assert read == [["id"], ["image"]]


def test_a_reading_that_is_cut_short_remembers_nothing(tmp_path):
    put_rows(tmp_path, range(4))
    rows = read_pictured(tmp_path, [tmp_path / FILE], ("id", "image"))
    where, row = next(rows)
    keep_picture(tmp_path, where, row["image"])
    rows.close()
    assert not (tmp_path / MEMORY).exists()
    assert len(kept(tmp_path)) == 4


def test_lists_and_absent_pictures_keep_their_shape_and_unasked_ones_come_later(tmp_path, read):
    frames = [cell(picture(n)) for n in range(3)]
    shown = [frames, [], None, [frames[2], None]]
    put_table(tmp_path / FILE, [{"id": i, "image": images} for i, images in enumerate(shown)])

    def shapes(place):
        found = []
        for where, row in read_pictured(tmp_path, [tmp_path / FILE], ("id", "image")):
            images = row["image"]
            found.append(images and [image is not None for image in images])
            if images:
                path = keep_picture(tmp_path, where, images[place if len(images) > place else 0])
                assert path.read_bytes() == (frames[2 if row["id"] == 3 else place])["bytes"]
        return found

    expected = [[True] * 3, [], None, [True, False]]
    assert shapes(1 - 1) == expected
    assert shapes(2) == expected  # kept now, unknown before
    read.clear()
    assert shapes(2) == shapes(0) == expected
    assert read == [["id"], ["id"]]


def test_several_columns_and_those_of_another_reader_are_remembered_side_by_side(tmp_path, read):
    put_table(
        tmp_path / FILE,
        [{"id": 0, "one": cell(picture(1)), "two": cell(picture(2)), "none": None}],
    )

    def names(*columns):
        rows = read_pictured(
            tmp_path, [tmp_path / FILE], ("id", *columns), ("lacking",), (*columns, "lacking")
        )
        found = []
        for where, row in rows:
            assert set(row) == {"id", *columns}
            cells = [row[name] for name in columns]
            found += [cell and keep_picture(tmp_path, where, cell).stem for cell in cells]
        return found

    assert names("one") == digests([1])
    assert names("two", "none") == [*digests([2]), None]
    read.clear()
    assert names("one", "two", "none") == [*digests([1, 2]), None]
    assert read == [["id"]]


def test_columns_that_are_absent_are_refused(tmp_path):
    put_rows(tmp_path, [1])
    with pytest.raises(ValueError, match=r"columns \['picture'\] are missing; it has"):
        next(read_pictured(tmp_path, [tmp_path / FILE], ("id", "picture"), (), ["picture"]))


def test_a_cell_that_is_no_picture_is_named_as_before_and_not_remembered(tmp_path):
    put_table(tmp_path / FILE, [{"id": 0, "image": cell(b"text")}])
    with pytest.raises(ValueError, match=r"test-0\.parquet:row 1: 4 bytes that are no picture"):
        kept(tmp_path)
    assert not (tmp_path / MEMORY).exists()


def test_processes_that_read_one_table_at_once_find_the_same(tmp_path):
    put_rows(tmp_path, range(30))
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(kept, [tmp_path] * 4))
    assert all([path.stem for _, path in rows] == digests(range(30)) for rows in found)
    names = json.loads((tmp_path / MEMORY).read_text())["columns"]["image"]
    assert [name.partition(".")[0] for name in names] == digests(range(30))
    assert not list((tmp_path / ".pictures").rglob("*.part*"))
