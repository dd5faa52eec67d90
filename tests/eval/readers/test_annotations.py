import pytest

from eval.readers.annotations import hold_same, in_order, read_rows, read_values, texts
from eval.task import Sample


def test_rows_of_a_list_and_of_one_under_a_key(tmp_path):
    (tmp_path / "a.json").write_text('[{"x": 1}, {"x": 2.5}]')
    (tmp_path / "b.json").write_text('{"info": [3], "data": [{"x": [{"y": null}]}]}')
    assert list(read_rows(tmp_path / "a.json")) == [
        (f"{tmp_path}/a.json:row 1", {"x": 1}),
        (f"{tmp_path}/a.json:row 2", {"x": 2.5}),
    ]
    assert [row for _, row in read_rows(tmp_path / "b.json", "data")] == [{"x": [{"y": None}]}]


def test_objects_by_their_names(tmp_path):
    (tmp_path / "a.json").write_text('{"q1": {"x": 1}, "q2": {}}')
    where = f"{tmp_path}/a.json:row"
    assert list(read_values(tmp_path / "a.json")) == [
        (f"{where} 1", "q1", {"x": 1}),
        (f"{where} 2", "q2", {}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ('{"data": [{"x": 1}', "not a JSON file"),
        ('{"rows": []}', "no rows; a list of objects under 'data' was expected"),
        ('{"data": [1]}', "row 1: an object was expected, not int"),
    ],
)
def test_a_file_without_such_rows_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / "a.json", "data"))


@pytest.mark.parametrize(("text", "message"), [("{}", "no rows"), ('{"a": 1}', "must name an obj")])
def test_an_object_of_no_objects_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_values(tmp_path / "a.json"))


def test_texts_of_a_list():
    assert texts("here", {"a": ["x", ""]}, "a") == ("x", "")
    assert texts("here", {"a": [{"y": "x"}]}, "a", "y") == ("x",)
    for bad in (None, "x", [1], [{"y": 1}], [{"z": "x"}], ["x"]):
        with pytest.raises(ValueError, match=r"here: a=.* must be a list of texts"):
            texts("here", {"a": bad}, "a", "y" if bad != [1] else "")


def test_samples_stand_by_their_numbers_and_no_id_twice():
    samples = [Sample(name, "?", ()) for name in ("10", "9", "b/2", "b/10")]
    assert [s.id for s in in_order("t", samples)] == ["9", "10", "b/2", "b/10"]
    with pytest.raises(ValueError, match="t: the id '9' is used twice"):
        in_order("t", [*samples, samples[1]])


def test_files_with_other_ids_do_not_join():
    hold_same("t", {"one": {"1": 0}, "two": ["1"]})
    with pytest.raises(ValueError, match=r"one and two do not join: 2 .*\['1', '2'\], 1 .*\['3'\]"):
        hold_same("t", {"one": ["1", "2"], "two": ["3"]})
