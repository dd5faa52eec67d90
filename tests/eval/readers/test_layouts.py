import pytest

from eval.readers.layouts import all_there, find_layout, hub

LAYOUTS = {
    "official files": {"questions": ("gqa/data/q.json", "gqa/q.json"), "pictures": ("gqa/*.jpg",)},
    "hub copy": {"rows": hub("gqa", "testdev-*")},
}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_first_complete_layout_is_taken_with_its_files_in_order(tmp_path):
    touch(tmp_path, "gqa/q.json", "gqa/2.jpg", "gqa/1.jpg", "hub/gqa/testdev-0.parquet")
    found = find_layout(tmp_path, "gqa", LAYOUTS)
    assert found.layout == "official files"
    assert found.one("questions") == tmp_path / "gqa/q.json"
    assert found.files["pictures"] == (tmp_path / "gqa/1.jpg", tmp_path / "gqa/2.jpg")


@pytest.mark.parametrize("place", ["testdev-0.parquet", "a/b/testdev-0.arrow"])
def test_an_incomplete_layout_gives_way_to_the_next(tmp_path, place):
    touch(tmp_path, "gqa/q.json", f"hub/gqa/{place}")
    found = find_layout(tmp_path, "gqa", LAYOUTS)
    assert (found.layout, found.one("rows")) == ("hub copy", tmp_path / "hub/gqa" / place)


def test_of_two_patterns_the_first_with_a_file_counts(tmp_path):
    touch(tmp_path, "gqa/data/q.json", "gqa/q.json", "gqa/1.jpg")
    found = find_layout(tmp_path, "gqa", LAYOUTS)
    assert found.files["questions"] == (tmp_path / "gqa/data/q.json",)


def test_nothing_complete_names_every_path_looked_for(tmp_path):
    touch(tmp_path, "gqa/q.json")
    with pytest.raises(ValueError, match="gqa: no layout") as error:
        find_layout(tmp_path, "gqa", LAYOUTS)
    for part in ("gqa/data/q.json", "gqa/*.jpg", "hub/gqa/**/testdev-*.parquet", ".arrow"):
        assert part in str(error.value)
    assert "questions (found)" in str(error.value)
    assert "pictures (absent)" in str(error.value)


def test_absent_files_are_listed_once_and_counted(tmp_path):
    touch(tmp_path, "0.png")
    all_there([tmp_path / "0.png"], "  here")
    with pytest.raises(ValueError, match="and 2 more"):
        all_there([tmp_path / f"{i % 8}.png" for i in range(16)], "  here")
