"""Tables as CSV, damaged ones, and what the verb ``normalise`` refuses."""

import json
import re

import pytest

from tests.data_prep.formats_by_hand import (
    LETTERED,
    TALKS,
    dropped_rows,
    run,
    run_whole,
    write_lines,
)


class TestTables:
    def write(self, path, text, encoding="utf-8"):
        path.write_bytes(text.encode(encoding))
        return path

    def test_tabs_long_cells_and_blank_lines(self, checkpoints, tmp_path):
        long = "x" * 200_000  # more than the csv module takes unless told to
        source = self.write(tmp_path / "in.tsv", f"question\tanswer\n\n{long}\ta, b\n")
        (row,) = run_whole(source, tmp_path / "out.jsonl", checkpoints["dense"])
        assert [turn["value"] for turn in row["conversations"]] == [long, "a, b"]

    def test_a_line_with_other_fields_than_the_header_is_dropped(self, checkpoints, tmp_path):
        source = self.write(tmp_path / "in.csv", "question,answer\nq,a\nq\nq,a,b\n")
        output = tmp_path / "out.jsonl"
        assert len(run_whole(source, output, checkpoints["dense"])) == 1
        assert [(entry["row"], entry["reason"]) for entry in dropped_rows(output)] == [
            (1, "fields"),
            (2, "fields"),
        ]

    @pytest.mark.parametrize(
        ("text", "encoding", "message"),
        [
            ("question,answer\nq,\u00fc\n", "latin1", "is not UTF-8: .* iconv"),
            ('question,answer\nq,"a\n', "utf-8", "line 2: unexpected end of data"),
            ("question,question\nq,a\n", "utf-8", "must name each column once"),
            ("question,answer\n", "utf-8", "holds no rows"),
            ("", "utf-8", "must name each column once"),
        ],
    )
    def test_a_damaged_table_is_refused(
        self, text, encoding, message, checkpoints, tmp_path, capsys
    ):
        source = self.write(tmp_path / "in.csv", text, encoding)
        assert run(source, tmp_path / "out.jsonl", "--checkpoint", checkpoints["dense"]) == 2
        assert_says(capsys, message)

    def test_an_empty_cell_in_the_first_line_is_a_row_s_fault_not_the_table_s(
        self, checkpoints, tmp_path
    ):
        source = self.write(tmp_path / "in.csv", "question,answer\n,a\nq,a\n")
        output = tmp_path / "out.jsonl"
        assert len(run_whole(source, output, checkpoints["dense"])) == 1
        assert [entry["reason"] for entry in dropped_rows(output)] == ["question"]

    def test_columns_by_other_names(self, checkpoints, tmp_path):
        source = self.write(tmp_path / "in.csv", "nr,q,A,B,gold,img\n5,Which?,x,y,B,a/0.png\n")
        columns = ["id=nr", "question=q", "options=A,B", "answer=gold", "image=img"]
        (row,) = run_whole(
            source, tmp_path / "out.jsonl", checkpoints["dense"], "--columns", *columns
        )
        assert row["id"] == "5"
        assert row["image"] == "a/0.png"
        assert [turn["value"] for turn in row["conversations"]] == [
            f"<image>\nWhich?\nA. x\nB. y\n{LETTERED}",
            "B",
        ]


def assert_says(capsys, message):
    error = capsys.readouterr().err
    assert re.search(message, error, re.DOTALL), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.jsonl", "out.jsonl"], r"no\.jsonl does not exist"),
        (["in.jsonl", "out.json"], r"out\.json must end in \.jsonl or \.parquet"),
        (["in.jsonl", "there.jsonl"], r"there\.jsonl exists: name another or give --overwrite"),
        (["in.jsonl", "in.jsonl", "--overwrite"], "is the input"),
        (["in.jsonl", "out.jsonl", "--image_folder", "no"], "image_folder .*no is not a directory"),
        (["in.jsonl", "out.jsonl", "--columns", "image=img"], "the table has no column 'img'"),
        (["in.jsonl", "out.jsonl", "--columns", "imag=id"], "did you mean image"),
        (["in.jsonl", "out.jsonl", "--max_length", "0"], "must be a whole number above 0"),
        (["cut.jsonl", "out.jsonl"], r"cut\.jsonl line 2 is not JSON"),
        (["held.jsonl", "out.jsonl"], "--image_folder DIR"),
        (["other.jsonl", "out.jsonl"], "fit no format"),
        (["in.jsonl", "out.jsonl", "--checkpoint", "no"], "checkpoint .*no is not a directory"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    words, message, checkpoints, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", TALKS)
    write_lines(tmp_path / "other.jsonl", [{"text": "a"}])
    (tmp_path / "cut.jsonl").write_text(json.dumps(TALKS[2]) + '\n{"id": ')
    (tmp_path / "there.jsonl").write_text("mine")
    picture = {
        "type": "image_url",
        "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="},
    }
    write_lines(
        tmp_path / "held.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": [picture]},
                    {"role": "assistant", "content": "b"},
                ]
            }
        ],
    )
    before = {path.name for path in tmp_path.iterdir()}
    if "--checkpoint" not in words:
        words = [*words, "--checkpoint", checkpoints["dense"]]
    assert run(*words) == 2
    assert_says(capsys, message)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "there.jsonl").read_text() == "mine"
