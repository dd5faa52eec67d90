"""Fixture files of benchmarks: tiny pictures, JSON and parquet, made here."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number, kind="PNG"):
    """The bytes of a small picture, another one for each number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (40 * number % 256, 30, 200)).save(file, format=kind)
    return file.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def put_json(path, value):
    put(path, json.dumps(value))


def put_lines(path, rows):
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_table(path, rows):
    """Rows as parquet or arrow, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_stream(str(path), table.schema) as sink:
        sink.write_table(table)


def cell(content):
    """A picture as the hub's tables hold it."""
    return {"bytes": content, "path": None}
