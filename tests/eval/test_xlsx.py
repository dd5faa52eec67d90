import zipfile
from xml.etree import ElementTree

import pytest

from eval.xlsx import LONGEST, MAIN, write_xlsx

ROWS = [["index", "text"], [7, 'a <b> & "c"'], [8, " lead\n\u4e2d \U0001f600"], [9, ""]]


def cells(path):
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            ElementTree.fromstring(file.read(name))  # every part is well-formed
        sheet = ElementTree.fromstring(file.read("xl/worksheets/sheet1.xml"))
    return [
        [
            int(cell.findtext(f"{{{MAIN}}}v"))
            if cell.get("t") is None
            else cell.findtext(f"{{{MAIN}}}is/{{{MAIN}}}t")
            for cell in row
        ]
        for row in sheet.iter(f"{{{MAIN}}}row")
    ]


def test_texts_and_numbers_come_back(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", ROWS)
    assert cells(tmp_path / "a.xlsx") == ROWS


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_xlsx(tmp_path / name, ROWS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_xml_cannot_hold_is_replaced(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", [["a\x00b\x0b\ud800\uffff"]])
    assert cells(tmp_path / "a.xlsx") == [["a\ufffdb\ufffd\ufffd\ufffd"]]


def test_a_text_that_no_cell_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="32768 characters; a cell holds 32767"):
        write_xlsx(tmp_path / "a.xlsx", [["a" * (LONGEST + 1)]])
