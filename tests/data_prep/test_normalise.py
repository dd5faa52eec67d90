"""The verb from file to file, with real pictures and the tiny model's processor."""

import base64
import csv
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep import normalise
from data_prep.__main__ import main as data_prep
from data_prep.normalising import files, work
from llava_compete.data import LlavaDataset, processor_fingerprint, read_rows
from tests import tiny

LETTERED = "Answer with the option's letter from the given choices directly."


def as_llava(name, *texts, image=None):
    row = {**tiny.say(*texts), "id": name}
    return row if image is None else {**row, "image": image}


TALKS = [
    as_llava("1", "<image>\nWhat?", "A box.", "Sure?", "Yes \u00fc.", image="a/0.png"),
    as_llava("2", "<image>\n<image>\nWhich?", "One.", image=["a/1.png", "b/2.jpg"]),
    as_llava("3", "Hello?", "Hi."),
    as_llava("4", "First", "<b>", "<image>\nThen?", "Two.", image="b/2.jpg"),
]
QUESTIONS = [
    as_llava("1", "<image>\nWhat?", "box", image="a/0.png"),
    as_llava("2", f"<image>\n<image>\nWhich?\nA. x\nB. y\n{LETTERED}", "B")
    | {"image": ["a/1.png", "b/2.jpg"]},
    as_llava("3", "Hello?", "3"),
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for index, name in enumerate(["a/0.png", "a/1.png", "b/2.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.draw(index, (20 + 9 * index, 12)).save(root / name)
    return root


def names(row):
    image = row.get("image", [])
    return [image] if isinstance(image, str) else image


def content(folder, name):
    return (folder / name).read_bytes()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_sharegpt(row, folder):
    speakers = {"human": "user", "gpt": "assistant"}
    turns = [{**turn, "from": speakers[turn["from"]]} for turn in row["conversations"]]
    return {"id": row["id"], "conversations": turns, "images": names(row)}


def as_openai(row, folder, url=None):
    """Parts for every question: its pictures by ``url(name)``, then its text."""
    left = names(row)
    messages = []
    for turn in row["conversations"]:
        text = turn["value"]
        if turn["from"] == "gpt":
            messages.append({"role": "assistant", "content": text})
            continue
        count = text.count("<image>")
        shown, left = left[:count], left[count:]
        parts = [{"type": "image_url", "image_url": {"url": url(name)}} for name in shown]
        parts.append({"type": "text", "text": text.replace("<image>\n", "")})
        messages.append({"role": "user", "content": parts})
    return {"id": row["id"], "messages": messages}


def by_name(row, folder):
    return as_openai(row, folder, lambda name: name)


def by_data_url(row, folder):
    return as_openai(
        row, folder, lambda name: f"data:;base64,{base64.b64encode(content(folder, name)).decode()}"
    )


def by_list(row, folder):
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
    return {"id": row["id"], "messages": messages, "images": names(row)}


def write_talks(kind, path, folder):
    """TALKS in a format; gives the file."""
    write = {
        "llava": lambda row, _: row,
        "sharegpt": as_sharegpt,
        "openai": by_name,
        "openai-data": by_data_url,
        "openai-list": by_list,
    }[kind]
    return write_lines(path / "in.jsonl", [write(row, folder) for row in TALKS])


def write_questions(kind, path, folder):
    """QUESTIONS as a table; gives the file."""
    rows = [
        {"question": "What?", "image": ["a/0.png"], "answer": "box", "options": None},
        {"question": "Which?", "image": ["a/1.png", "b/2.jpg"], "answer": "y"}
        | {"options": ["x", "y"]},
        {"question": "Hello?", "image": None, "answer": "3", "options": None},
    ]
    rows = [{"id": index, **row} for index, row in enumerate(rows, start=1)]
    if kind == "csv":
        file = path / "in.csv"
        with file.open("w", encoding="utf-8-sig", newline="") as opened:
            table = csv.DictWriter(opened, list(rows[0]))
            table.writeheader()
            for row in rows:
                listed = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list)}
                table.writerow({**row, **listed})
        return file
    if kind == "parquet-bytes":
        for row in rows:
            row["image"] = [
                {"bytes": content(folder, name), "path": "x.png"} for name in row["image"] or []
            ]
    file = path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def run(*words):
    """The exit status of the verb."""
    try:
        data_prep(["normalise", *map(str, words), "--workers", "1"])
    except SystemExit as stopped:
        return stopped.code
    return 0


def run_whole(source, output, checkpoint, *words):
    assert run(source, output, "--checkpoint", checkpoint, *words) == 0
    return list(read_rows(output))


def dropped_rows(output):
    lines = (output.parent / f"{output.name}.dropped.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def stats_of(output):
    return json.loads((output.parent / f"{output.name}.stats.json").read_text())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("write", "kind", "rows"),
    [
        (write_talks, "llava", TALKS),
        (write_talks, "sharegpt", TALKS),
        (write_talks, "openai", TALKS),
        (write_talks, "openai-data", TALKS),
        (write_talks, "openai-list", TALKS),
        (write_questions, "csv", QUESTIONS),
        (write_questions, "parquet-names", QUESTIONS),
        (write_questions, "parquet-bytes", QUESTIONS),
    ],
)
def test_every_format_trains_as_the_row_written_by_hand(
    write, kind, rows, suffix, checkpoints, processor, folder, tmp_path
):
    by_hand = LlavaDataset(write_lines(tmp_path / "hand.jsonl", rows), folder, processor)
    output = tmp_path / f"out{suffix}"
    written = run_whole(
        write(kind, tmp_path, folder), output, checkpoints["dense"], "--image_folder", folder
    )
    dataset = LlavaDataset(output, folder, processor)
    assert len(dataset) == len(rows)
    for index, row in enumerate(written):
        sample, expected = dataset[index], by_hand[index]
        assert set(sample) == set(expected)
        for name, value in expected.items():
            assert torch.equal(sample[name], value), (index, name)
        assert row["length"] == expected["input_ids"].numel()
        assert row["length_by"] == processor_fingerprint(processor)
        assert row["id"] == rows[index]["id"]
        assert row["conversations"] == rows[index]["conversations"]
    assert dropped_rows(output) == []


def test_pictures_in_rows_are_one_file_each_below_a_folder_of_the_outputs_name(
    checkpoints, folder, tmp_path
):
    source = write_talks("openai-data", tmp_path, folder)
    kept = sorted(folder.rglob("*.*"))
    rows = run_whole(
        source, tmp_path / "mine.jsonl", checkpoints["dense"], "--image_folder", folder
    )
    new = [path for path in sorted(folder.rglob("*.*")) if path not in kept]
    assert len(new) == 3  # one of the four pictures is shown twice
    assert all(path.is_relative_to(folder / "mine") for path in new)
    assert {name for row in rows for name in names(row)} == {
        path.relative_to(folder).as_posix() for path in new
    }
    assert [row["source"] for row in rows] == ["mine", "mine", "text", "mine"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_second_time_changes_no_byte(suffix, checkpoints, folder, tmp_path):
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    run_whole(write_talks("sharegpt", tmp_path, folder), once, checkpoints["dense"])
    run_whole(once, twice, checkpoints["dense"])
    assert once.read_bytes() == twice.read_bytes()


def test_jsonl_and_parquet_hold_the_same(checkpoints, folder, tmp_path):
    source = write_talks("llava", tmp_path, folder)
    paths = [tmp_path / name for name in ("a.jsonl", "b.parquet", "c.jsonl")]
    for before, after in zip([source, *paths], paths, strict=False):
        run_whole(before, after, checkpoints["dense"])
    assert paths[0].read_bytes() == paths[2].read_bytes()
    table = pq.read_table(paths[1])
    assert table.schema.equals(files.SCHEMA)
    assert table["image"].to_pylist() == [names(row) or None for row in TALKS]


def test_what_is_dropped_is_counted_by_reason_and_kept_whole(checkpoints, folder, tmp_path, capsys):
    bad = [
        {"id": 7, "messages": []},
        as_llava("8", "Hello?", " "),
        as_llava("9", "<image>\nWhat?", "Two?"),
        as_llava("10", "What?", "It.", image="http://x.org/1.png"),
        as_llava("11", "What?", "\ud800"),
    ]
    source = write_lines(tmp_path / "in.jsonl", [*TALKS[:2], *bad, *TALKS[2:]])
    output = tmp_path / "out.jsonl"
    rows = run_whole(source, output, checkpoints["dense"])
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    dropped = dropped_rows(output)
    assert [(entry["row"], entry["id"], entry["reason"]) for entry in dropped] == [
        (2, "7", "another format"),
        (3, "8", "conversation"),
        (4, "9", "conversation"),
        (5, "10", "image on the web"),
        (6, "11", "text"),
    ]
    assert [entry["content"] for entry in dropped] == bad
    assert "the answer is empty" in dropped[1]["detail"]
    stats = stats_of(output)
    assert stats["rows"] == {"read": 9, "written": 4, "dropped": 5}
    assert {name: entry["rows"] for name, entry in stats["dropped"].items()} == {
        "conversation": 2,
        "another format": 1,
        "image on the web": 1,
        "text": 1,
    }
    assert stats["dropped"]["conversation"]["first"]["row"] == 3
    shown = capsys.readouterr().out
    assert "4 of 9 rows written, 5 dropped" in shown
    assert "dropped: 2 conversation" in shown


def test_the_status_says_whether_rows_were_dropped_if_asked_to(checkpoints, tmp_path):
    bad = as_llava("8", "Hello?", "")
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    source = write_lines(tmp_path / "in.jsonl", [TALKS[2], bad])
    words = ("--checkpoint", checkpoints["dense"])
    assert run(source, some, *words) == 0
    assert run(source, some, *words, "--strict", "--overwrite") == 1
    assert len(list(read_rows(some))) == 1
    assert run(write_lines(tmp_path / "in.jsonl", [TALKS[2]]), none, *words, "--strict") == 0
    assert run(write_lines(tmp_path / "in.jsonl", [bad]), none, *words, "--overwrite") == 1
    assert none.read_text() == ""


def test_bytes_and_dates_of_a_dropped_row_are_kept_too(checkpoints, tmp_path):
    stamp = pa.scalar(0, pa.timestamp("s"))
    table = pa.table({"question": ["q"], "image": [b"no picture"], "when": [stamp.as_py()]})
    pq.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.jsonl"
    words = ("--checkpoint", checkpoints["dense"], "--image_folder", tmp_path)
    assert run(tmp_path / "in.parquet", output, *words) == 1
    (entry,) = dropped_rows(output)
    assert base64.b64decode(entry["content"]["image"]["base64"]) == b"no picture"
    assert entry["content"]["when"] == "1970-01-01 00:00:00"


def test_the_counts_say_what_the_lengths_hold_for_and_what_is_left_out(
    checkpoints, processor, folder, tmp_path
):
    rows = [{**row, "model": "x"} for row in TALKS]
    rows[2]["conversations"][0]["weight"] = 0
    rows[3]["source"] = "mine"
    output = tmp_path / "out.jsonl"
    written = run_whole(write_lines(tmp_path / "in.jsonl", rows), output, checkpoints["dense"])
    del rows[2]["conversations"][0]["weight"]
    stats = stats_of(output)
    assert stats["measured_by"] == {
        "tokenizer": str(checkpoints["dense"].with_name("dense-parts") / "lm"),
        "tower": tiny.TOWER_NAME,
        "image_tokens": tiny.NUM_PATCHES,
        "fingerprint": processor_fingerprint(processor),
    }
    assert stats["format"] == "llava"
    assert stats["keys_left_out"] == {"model": 4, "weight of turns": 1}
    lengths = [row["length"] for row in written]
    assert stats["length"]["total"] == sum(lengths)
    assert stats["length"]["longest"] == max(lengths)
    assert stats["sources"] == {
        "a": {"rows": 2, "images": 3, "tokens": lengths[0] + lengths[1]},
        "mine": {"rows": 1, "images": 1, "tokens": lengths[3]},
        "text": {"rows": 1, "images": 0, "tokens": lengths[2]},
    }


def test_a_source_may_be_named_and_ids_are_made_of_the_files_name(checkpoints, tmp_path):
    rows = [tiny.say("a", "b"), {**tiny.say("c", "d"), "id": ""}, tiny.say("e", "f")]
    del rows[0]["id"]
    source = write_lines(tmp_path / "talks.jsonl", rows)
    written = run_whole(source, tmp_path / "out.jsonl", checkpoints["dense"], "--source", "mine")
    assert [row["id"] for row in written] == ["talks-0", "talks-1", "row-7"]
    assert {row["source"] for row in written} == {"mine"}


def test_a_length_limit_drops_what_training_refuses_and_counts_what_it_cuts(
    checkpoints, processor, folder, tmp_path
):
    rows = [
        TALKS[2],
        as_llava("long", "q" * 90, "a"),
        as_llava("turns", "a", "b", "c" * 60, "d"),
        as_llava("answer", "a", "b" * 90),
    ]
    output = tmp_path / "out.jsonl"
    written = run_whole(
        write_lines(tmp_path / "in.jsonl", rows), output, checkpoints["dense"], "--max_length", 70
    )
    assert [row["id"] for row in written] == ["3", "turns", "answer"]
    whole = LlavaDataset(tmp_path / "in.jsonl", folder, processor)
    assert [row["length"] for row in written] == [
        whole[index]["input_ids"].numel() for index in (0, 2, 3)
    ]  # of the rows as they are
    (entry,) = dropped_rows(output)
    assert (entry["id"], entry["reason"]) == ("long", "too long")
    assert stats_of(output)["cut_in_training"] == {
        "rows_that_lose_turns": 1,
        "exchanges_lost": 1,
        "answers_cut": 1,
    }
    assert stats_of(output)["max_length"] == 70


@pytest.mark.slow
def test_several_processes_give_the_same_in_order_and_read_only_a_little_ahead(
    checkpoints, tmp_path, monkeypatch
):
    rows = [tiny.make_row(index, picture=False) for index in range(150)]
    rows[77]["conversations"] = []
    source = write_lines(tmp_path / "in.jsonl", rows)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    run_whole(source, one, checkpoints["dense"])
    drawn, ahead = [], []
    read, spread = files.read, work.normalise

    def counted(file):
        for row in read(file):
            drawn.append(row)
            yield row

    def watched(*arguments):
        for done, result in enumerate(spread(*arguments)):
            ahead.append(len(drawn) - done)
            yield result

    monkeypatch.setattr(files, "read", counted)
    monkeypatch.setattr(work, "normalise", watched)
    monkeypatch.setattr(work, "CHUNK_ROWS", 10)
    monkeypatch.setattr(work, "PARALLEL_FROM", 30)
    monkeypatch.setattr(normalise, "FIRST_ROWS", 1)
    words = [source, two, "--checkpoint", checkpoints["dense"], "--workers", 2]
    data_prep(["normalise", *map(str, words)])
    assert one.read_bytes() == two.read_bytes()
    assert dropped_rows(one) == dropped_rows(two)
    assert len(dropped_rows(one)) == 1
    assert 10 < max(ahead) <= 2 * work.CHUNKS_AHEAD * 10


def test_the_weights_are_not_needed(checkpoints, tmp_path):
    light = tmp_path / "light"
    shutil.copytree(checkpoints["dense"], light, ignore=shutil.ignore_patterns("*.safetensors"))
    source = write_lines(tmp_path / "in.jsonl", TALKS)
    assert len(run_whole(source, tmp_path / "out.jsonl", light)) == 4


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
