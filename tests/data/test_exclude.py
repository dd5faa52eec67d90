"""Exclusion files: written, read back, and refused for any other data."""

import json
from pathlib import Path

import pytest

from llava_compete.data import Exclusion, read_exclusions, write_exclusions

EXCLUSIONS = [Exclusion(3, "row-3", "image missing"), Exclusion(0, "7", "no answer")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.json"
    file.write_text('[{"id": 7}]')
    return file


def test_exclusions_come_back_in_the_order_of_the_rows(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "exclude.json"
    write_exclusions(file, data, EXCLUSIONS, rows=4)
    assert read_exclusions(file, data) == EXCLUSIONS[::-1]
    content = json.loads(file.read_text())
    assert (content["data"], content["rows"], len(content["sha256"])) == ("rows.json", 4, 64)
    assert content["excluded"][0] == {"row": 3, "id": "row-3", "reason": "image missing"}


def test_a_data_file_of_other_content_is_refused_and_one_of_other_name_is_not(
    tmp_path: Path, data: Path
) -> None:
    file = tmp_path / "exclude.json"
    write_exclusions(file, data, EXCLUSIONS, rows=4)
    moved = data.rename(tmp_path / "other.json")
    assert read_exclusions(file, moved) == EXCLUSIONS[::-1]
    moved.write_text('[{"id": 8}]')
    with pytest.raises(ValueError, match=r"was made for another rows.json .*check --drop"):
        read_exclusions(file, moved)


@pytest.mark.parametrize("row", [-1, 4, 3])
def test_a_row_that_is_not_there_or_named_twice_is_refused(
    tmp_path: Path, data: Path, row: int
) -> None:
    exclusions = [*EXCLUSIONS, Exclusion(row, "x", "y")]
    with pytest.raises(ValueError, match=f"row {row} is named twice or not one of the 4 rows"):
        write_exclusions(tmp_path / "exclude.json", data, exclusions, rows=4)
    assert not (tmp_path / "exclude.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object with the keys"),
        ('{"excluded": []}', "must be an object with the keys"),
        ('{"data": "", "sha256": "", "rows": 1, "excluded": [{"row": 1}]}', "must be a list of"),
        ('{"data": "", "sha256": "", "rows": 1, "excluded": 3}', "must be a list of"),
        ('{"data": "", "sha256": "", "rows": "1", "excluded": []}', "'rows' must be a number"),
        ('{"data": "", "sha256": 1, "rows": 1, "excluded": []}', "was made for another"),
    ],
)
def test_a_file_of_another_form_is_refused(
    tmp_path: Path, data: Path, text: str, message: str
) -> None:
    file = tmp_path / "exclude.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_exclusions(file, data)


def test_a_missing_exclusion_file_says_what_makes_it(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.json does not exist.*check --drop"):
        read_exclusions(tmp_path / "gone.json", data)
