import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.readers.tables import BATCH, read_table, read_tsv

ROWS = [{"id": i, "image": {"bytes": bytes([i]), "path": None}} for i in range(2 * BATCH + 3)]


def write(path, rows):
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    opened = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
    with opened(str(path), table.schema) as sink:
        sink.write_table(table)


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
def test_all_rows_come_in_order_with_their_place(tmp_path, name):
    write(tmp_path / name, ROWS)
    read = list(read_table([tmp_path / name], ["id", "image"]))
    assert [row for _, row in read] == ROWS
    assert read[BATCH][0] == f"{tmp_path / name}:row {BATCH + 1}"


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
def test_only_named_columns_are_read_and_optional_ones_may_lack(tmp_path, name):
    write(tmp_path / name, ROWS)
    _, row = next(read_table([tmp_path / name], ["id"], optional=["hint"]))
    assert row == {"id": 0}
    with pytest.raises(ValueError, match=r"columns \['answer'\] are missing; it has"):
        next(read_table([tmp_path / name], ["answer"]))


def test_files_follow_each_other(tmp_path):
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write(paths[0], ROWS[:1])
    write(paths[1], ROWS[1:2])
    assert [row["id"] for _, row in read_table(paths, ["id"])] == [0, 1]


def test_a_tsv_gives_texts_however_long_and_quoted(tmp_path):
    cell = base64.b64encode(bytes(200_000)).decode()
    path = tmp_path / "a.tsv"
    path.write_text(f'index\thint\timage\n1\t"two\nlines, ""quoted"""\t{cell}\n2\t\tAA==\n')
    (where, first), (_, second) = read_tsv(path, ["index", "image"])
    assert first == {"index": "1", "hint": 'two\nlines, "quoted"', "image": cell}
    assert second["hint"] == ""
    assert where == f"{path}:row 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\n1\n", r"columns \['image'\] are missing"),
        ("index\timage\n1\n", "row 1: it has not as many cells"),
        ("index\timage\n1\ta\tb\n", "row 1: it has not as many cells"),
    ],
)
def test_a_tsv_that_is_not_a_table_is_refused(tmp_path, text, message):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_tsv(tmp_path / "a.tsv", ["index", "image"]))


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\nsize 12345\n",
        lambda content: content[: len(content) // 2],
    ],
    ids=["empty", "pointer", "cut"],
)
def test_a_table_that_is_not_whole_is_named(tmp_path, name, spoil):
    path = tmp_path / name
    write(path, ROWS)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}: not a whole parquet or arrow file"):
        list(read_table([path], ["id", "image"]))


def test_a_tsv_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.tsv").write_bytes("index\n\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.tsv: not a text in UTF-8"):
        list(read_tsv(tmp_path / "a.tsv", ["index"]))
