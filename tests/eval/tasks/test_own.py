"""A user's own set, as JSON lines and as a table."""

import pytest

from eval.task import Scored, load_task
from tests.eval.tasks.files import cell, picture, put, put_json, put_lines, put_table

ROWS = [
    {"question": "Which?", "answer": "B", "options": ["a cup", "a dog"], "group": "one"},
    {"question": "Which now?", "answer": "A", "options": ["a cat", "an owl"], "group": "two"},
    {"question": "And here?", "answer": "A", "options": ["a bee", "an ant"], "group": "two"},
]


def shown(task):
    return [
        (s.id, s.prompt, s.references, s.options, s.group, [p.read_bytes() for p in s.images])
        for s in task.samples
    ]


def write(root, rows, name="rows.jsonl", **settings):
    settings = {"rows": name, "rule": "exact_match"} | settings
    put_json(root / "own/task.json", settings)
    (put_lines if name.endswith("jsonl") else put_table)(root / "own" / name, rows)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_lines_and_tables_give_the_same_samples(tmp_path, suffix):
    pictures = [picture(i) for i in range(3)]
    for i, content in enumerate(pictures):
        put(tmp_path / f"lines/own/pictures/{i}.png", content)
    lines = [row | {"image": f"pictures/{i}.png"} for i, row in enumerate(ROWS)]
    settings = {"rule": "choice", "prompt": "lettered"}
    write(tmp_path / "lines", lines, **settings)
    cells = [row | {"image": cell(pictures[i])} for i, row in enumerate(ROWS)]
    write(tmp_path / "table", cells, f"rows{suffix}", **settings)
    tasks = [load_task("own", tmp_path / name) for name in ("lines", "table")]
    assert shown(tasks[0]) == shown(tasks[1])
    assert tasks[0].samples[0].id == "1"
    assert tasks[0].samples[0].prompt == (
        "Which?\nA. a cup\nB. a dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert tasks[0].headline == "accuracy"
    rows = [Scored(s, tasks[0].score(s.references[0], s)) for s in tasks[0].samples]
    assert tasks[0].aggregate(rows)["accuracy"].value == 1.0


def test_several_pictures_or_none(tmp_path):
    for i in (1, 2):
        put(tmp_path / f"own/{i}.png", picture(i))
    row = {"question": "The same?", "answer": "no"}
    write(tmp_path, [row | {"images": ["1.png", "2.png"]}, row | {"image": "1.png"}, row])
    images = [sample.images for sample in load_task("own", tmp_path).samples]
    first, second = tmp_path / "own/1.png", tmp_path / "own/2.png"
    assert images == [(first, second), (first,), ()]


def test_a_table_may_hold_several_pictures_and_lack_fields(tmp_path):
    row = {"question": "The same?", "answer": None, "answers": ["no", "none"]}
    rows = [row | {"images": [cell(picture(1)), cell(picture(2))]}, row | {"images": None}]
    write(tmp_path, rows, "rows.parquet", prompt="short", max_new_tokens=4)
    task = load_task("own", tmp_path)
    assert [len(sample.images) for sample in task.samples] == [2, 0]
    assert task.samples[0].references == ("no", "none")
    assert task.samples[0].prompt.endswith(
        "same?\nAnswer the question using a single word or phrase."
    )
    assert task.max_new_tokens == 4


def test_the_rule_follows_the_variant_else_the_profile(tmp_path):
    row = {"question": "Is it?", "answer": "red"}
    write(tmp_path, [row], rule="gqa")
    sample = load_task("own", tmp_path).samples[0]
    assert load_task("own", tmp_path, "lmms").score("red!", sample).values == {"exact_match": 1.0}
    assert load_task("own", tmp_path).score("red!", sample).values == {"exact_match": 0.0}
    write(tmp_path, [row], rule="gqa", variant="lmms")
    assert load_task("own", tmp_path).score("red!", sample).values == {"exact_match": 1.0}
    ten = {"question": "Is it?", "answers": ["red,white"] * 10}
    write(tmp_path, [ten], rule="vqa_accuracy", variant="m4c")
    task = load_task("own", tmp_path, "lmms")
    assert task.score("redwhite", task.samples[0]).values == {"vqa_accuracy": 1.0}


def test_answers_without_a_rule_are_kept(tmp_path):
    write(tmp_path, [{"question": "Tell."}], rule="none")
    task = load_task("own", tmp_path)
    assert task.unscored == "its rule is none"
    assert task.score("so", task.samples[0]).values == {}


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({}, {"rule": "magic"}, "rule='magic' must be one of ai2d, anls"),
        ({}, {"prompt": "long"}, "prompt='long' must be one of as_is, short, lettered"),
        ({}, {"tokens": 3}, r"unknown keys \['tokens'\]; there are rows"),
        ({}, {"max_new_tokens": "3"}, "max_new_tokens='3' must be a whole number"),
        ({}, {"variant": "m4c"}, "the rule exact_match has no variants"),
        ({}, {"rule": "gqa", "variant": "m4c"}, "no rule is called 'm4c'; there are libmoe"),
        ({}, {"rows": "../rows.jsonl"}, "must stay inside"),
        ({}, {"rows": "other.jsonl"}, "looked for\n .*other.jsonl"),
        ({"question": " "}, {}, "rows.jsonl:1: question=' ' must be a text"),
        ({"answer": None}, {}, "neither answer nor answers"),
        ({"answers": ["a"]}, {}, "both answer and answers"),
        ({"anwser": "a"}, {}, r"unknown fields \['anwser'\]"),
        ({"image": "1.png"}, {}, "looked for\n .*own/1.png"),
        ({"image": "../1.png"}, {}, "'../1.png' must stay inside"),
        ({"images": "1.png"}, {}, "images='1.png' must be a list"),
        ({"options": "a"}, {}, "options='a' must be a list of texts"),
        ({}, {"prompt": "lettered"}, "the prompt is lettered, but the row has no options"),
        ({"options": ["a", "b"]}, {"rule": "choice"}, "of 'AB', for an answer; it is 'a thing'"),
        ({}, {"rule": "yes_no"}, "answer='a thing' must be yes or no"),
    ],
)
def test_what_cannot_be_asked_or_scored_is_refused(row, settings, message, tmp_path):
    write(tmp_path, [{"question": "What?", "answer": "a thing"} | row])
    put_json(tmp_path / "own/task.json", {"rows": "rows.jsonl", "rule": "exact_match"} | settings)
    with pytest.raises(ValueError, match=message):
        load_task("own", tmp_path)


def test_without_a_description_the_layout_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"looked for\n .*own/task.json"):
        load_task("own", tmp_path)
