import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from eval import digests
from eval.digests import picture_digests
from eval.readers.pictures import keep_picture
from tests.eval.tasks.files import picture, put

INDEX = ".pictures/digests.json"


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose content was read."""
    read = []
    whole = digests._digest

    def noted(path):
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(digests, "_digest", noted)
    return read


def pictures(root, numbers):
    paths = [root / f"images/{number}.png" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        if not path.exists():
            put(path, picture(number))
    return paths


def truth(paths):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_each_file_is_read_once_for_all_times(tmp_path, hashed):
    first, more = pictures(tmp_path, [1, 2, 3]), pictures(tmp_path, [2, 3, 4])
    assert picture_digests([*first, *first], tmp_path) == truth(first)
    assert hashed == ["1.png", "2.png", "3.png"]
    assert picture_digests(more, tmp_path) == truth(more)
    assert picture_digests([*first, *more], tmp_path) == truth([*first, *more])
    assert hashed == ["1.png", "2.png", "3.png", "4.png"]


def test_without_a_root_nothing_is_kept(tmp_path, hashed):
    (path,) = pictures(tmp_path, [1])
    assert picture_digests([path], None) == picture_digests([path], None) == truth([path])
    assert hashed == ["1.png"] * 2
    assert not (tmp_path / INDEX).exists()


def test_a_file_that_changed_is_read_again(tmp_path, hashed):
    (path,) = pictures(tmp_path, [1])
    before, first = path.stat(), picture_digests([path], tmp_path)
    path.write_bytes(path.read_bytes() + b"!")
    assert picture_digests([path], tmp_path) == truth([path]) != first
    path.write_bytes(picture(7)[: before.st_size].ljust(before.st_size))
    os.utime(path, ns=(0, before.st_mtime_ns + 1))
    assert picture_digests([path], tmp_path) == truth([path])


def test_a_change_that_leaves_size_and_time_is_not_seen(tmp_path):
    (path,) = pictures(tmp_path, [1])
    before, first = path.stat(), picture_digests([path], tmp_path)
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(0, before.st_mtime_ns))
    assert picture_digests([path], tmp_path) == first


def test_a_kept_picture_is_not_read_at_all(tmp_path, hashed):
    path = keep_picture(tmp_path, "here", picture(5))
    assert picture_digests([path], tmp_path) == truth([path])
    assert hashed == []


def test_a_moved_data_root_takes_its_digests_along(tmp_path, hashed):
    picture_digests(pictures(tmp_path / "a", [1]), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = [tmp_path / "b/images/1.png"]
    assert picture_digests(moved, tmp_path / "b") == truth(moved)
    assert hashed == ["1.png"]


def test_processes_that_write_at_once_leave_a_whole_index(tmp_path):
    parts = [pictures(tmp_path, range(start, start + 20)) for start in (0, 10, 20, 30)]
    with ProcessPoolExecutor(2) as pool:
        for part, found in zip(
            parts, pool.map(partial(picture_digests, root=tmp_path), parts), strict=True
        ):
            assert found == truth(part)
    entries = json.loads((tmp_path / INDEX).read_text())
    for name, entry in entries.items():
        assert entry["sha256"] == truth([tmp_path / name])[tmp_path / name]
    assert len(entries) >= 20
