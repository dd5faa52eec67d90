"""The same rows in every format, and the verb ``normalise`` on files of them."""

import base64
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.__main__ import main as data_prep
from llava_compete.data import read_rows
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
