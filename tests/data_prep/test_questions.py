"""Rows and held-out questions: disjoint, balanced, repeatable, and true."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep import assets, quickstart
from data_prep import questions as q
from data_prep.captions import may_be_same, with_article
from data_prep.pictures import Picture

KINDS = ("animal", "food", "tool", "vehicle")
PER_KIND = 12


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [
        Picture(f"pictures/{kind}{i:02d}.png", f"{kind}name{i:02d}", kind)
        for kind in KINDS
        for i in range(PER_KIND)
    ]


@pytest.fixture(scope="module")
def train(pictures: list[Picture]) -> list[Picture]:
    return q.split(pictures, 0)[0]


@pytest.fixture(scope="module")
def tasks(pictures: list[Picture]) -> dict[str, list[q.Row]]:
    return q.held_out_tasks(q.split(pictures, 0)[1], 0)


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_split_is_disjoint_complete_and_even_in_every_kind(pictures, seed):
    train, held_out = q.split(pictures, seed)
    assert sorted(p.path for p in train + held_out) == [p.path for p in pictures]
    assert not {p.path for p in train} & {p.path for p in held_out}
    assert Counter(p.kind for p in held_out) == dict.fromkeys(KINDS, PER_KIND // 4)


def test_the_split_depends_on_the_seed_and_not_on_the_order(pictures):
    assert q.split(pictures, 0) == q.split(pictures[::-1], 0)
    assert q.split(pictures, 0) != q.split(pictures, 1)


@pytest.mark.parametrize("make", [q.align_rows, q.finetune_rows])
def test_only_the_first_question_of_a_picture_row_holds_the_image(train, make):
    for row in make(train, 0):
        images = [human.count("<image>") for human, _ in turns(row)]
        expected = [1] if "image" in row else [0]
        assert images == expected + [0] * (len(images) - 1)
        if "image" in row:
            assert turns(row)[0][0].startswith("<image>\n")


def test_every_training_picture_has_one_row_and_speakers_take_turns(train):
    for rows in (q.align_rows(train, 0), q.finetune_rows(train, 0)):
        assert sorted(r["image"] for r in rows if "image" in r) == [p.path for p in train]
        assert len({r["id"] for r in rows}) == len(rows)
        for row in rows:
            speakers = [turn["from"] for turn in row["conversations"]]
            assert speakers == ["human", "gpt"] * (len(speakers) // 2)


def test_the_caption_names_the_picture(train):
    by_path = {p.path: p for p in train}
    for row in q.align_rows(train, 0):
        name = by_path[row["image"]].name
        assert row["conversations"][1]["value"] == f"{with_article(name).capitalize()}."


def test_a_conversation_asks_name_kind_yes_no_and_choice(train):
    by_path = {p.path: p for p in train}
    for row in q.finetune_rows(train, 0):
        if "image" not in row:
            continue
        picture = by_path[row["image"]]
        asked = {human.removeprefix("<image>\n"): answer for human, answer in turns(row)}
        assert len(asked) == 5
        assert asked.pop(q.NAME_QUESTION) == picture.name
        assert asked.pop(q.KIND_QUESTION) == picture.kind
        assert asked.pop(q.yes_no_question(picture.name)) == "yes"
        assert sorted(asked.values())[1] == "no"
        (choice,) = [(human, letter) for human, letter in asked.items() if letter != "no"]
        assert f"\n{choice[1]}. {picture.name}\n" in choice[0]


def test_the_order_of_turns_varies(train):
    first = {turns(row)[0][1] for row in q.finetune_rows(train, 0) if "image" in row}
    assert {"yes", "no"} < first
    assert first & set(KINDS)


def test_a_few_rows_have_no_picture_and_ask_about_trained_names_only(train):
    rows = [row for row in q.finetune_rows(train, 0) if "image" not in row]
    assert len(rows) / (len(train) + len(rows)) == pytest.approx(0.05, abs=0.01)
    names = {p.name for p in train}
    for row in rows:
        ((human, _),) = turns(row)
        assert any(name in human for name in names)


def test_each_held_out_picture_is_asked_one_yes_and_one_no(pictures, tasks):
    held_out = {p.path: p for p in q.split(pictures, 0)[1]}
    assert Counter((r["image"], r["answer"]) for r in tasks["yesno"]) == {
        (path, answer): 1 for path in held_out for answer in ("yes", "no")
    }
    for row in tasks["yesno"]:
        is_named = row["question"] == q.yes_no_question(held_out[row["image"]].name)
        assert is_named == (row["answer"] == "yes")


def test_a_seen_name_gives_no_answer_away(pictures, tasks):
    """Wrong names are held-out names too, so a name unknown from training may be yes or no."""
    held_out_names = {p.name for p in q.split(pictures, 0)[1]}
    for row in tasks["yesno"]:
        assert any(name in row["question"] for name in held_out_names)


def test_choices_have_four_options_one_right_and_balanced_letters(pictures, tasks):
    names = {p.path: p.name for p in pictures}
    for row in tasks["choice"]:
        assert row["options"]["ABCD".index(row["answer"])] == names[row["image"]]
        assert len(set(row["options"])) == 4
        lines = [f"{letter}. {o}" for letter, o in zip("ABCD", row["options"], strict=True)]
        assert row["question"].splitlines() == [q.CHOICE_QUESTION, *lines, q.LETTER.strip()]
    counts = Counter(row["answer"] for row in tasks["choice"])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_short_questions_come_in_two_groups(pictures, tasks):
    by_path = {p.path: p for p in pictures}
    assert Counter(r["group"] for r in tasks["short"]) == {"kind": 12, "name": 12}
    for row in tasks["short"]:
        picture = by_path[row["image"]]
        assert row["answer"] == {"kind": picture.kind, "name": picture.name}[row["group"]]
        assert row["question"].endswith(q.SHORT)


def test_ids_of_a_task_are_unique(tasks):
    for rows in tasks.values():
        assert len({row["id"] for row in rows}) == len(rows)


def test_wrong_names_are_never_possibly_right():
    rng = q.random.Random(0)
    rose = Picture("a.png", "rose", "plant")
    pool = [
        Picture(f"{i}.png", name, "plant")
        for i, name in enumerate(["yellow flower", "rose", "birch", "palm tree", "thyme"])
    ] + [Picture("x.png", "owl", "animal"), Picture("y.png", "saw", "tool")]
    for _ in range(50):
        wrong = q.wrong_names(rng, rose, pool, 3)
        assert not {"rose", "yellow flower"} & set(wrong)
        assert not {"birch", "palm tree"} <= set(wrong)
        assert not any(may_be_same(a, b) for a in wrong for b in wrong if a != b)


def test_wrong_names_are_of_the_same_kind_about_half_of_the_time(pictures):
    rng = q.random.Random(0)
    same = [
        q.wrong_names(rng, pictures[0], pictures, 1)[0].startswith("animal") for _ in range(400)
    ]
    assert 0.4 < sum(same) / len(same) < 0.6


def test_too_few_names_are_refused():
    rose = Picture("a.png", "rose", "plant")
    with pytest.raises(ValueError, match="no wrong name for 'rose' among 1 pictures"):
        q.wrong_names(q.random.Random(0), rose, [rose], 1)


def run_quickstart(root: Path, pictures: list[Picture], monkeypatch, seed: int) -> dict[str, bytes]:
    """Write everything below ``root`` with stand-ins for what is fetched; give the text files."""

    def build(work: Path, target: Path) -> None:
        target.mkdir()
        index = []
        for i, picture in enumerate(pictures):
            name = Path(picture.path).name
            Image.new("RGB", (8, 8), (i, 0, 0)).save(target / name)
            index.append({"path": name, "name": picture.name, "kind": picture.kind})
        (target / "index.json").write_text(json.dumps(index))

    fake = assets.Asset("pictures", "made here", "0" * 64, build)
    weights = assets.Asset("w", "made here", "0" * 64, lambda work, target: target.touch())
    monkeypatch.setattr(assets, "LITE0", weights)
    monkeypatch.setattr(assets, "SMOLLM2", weights)
    monkeypatch.setattr(quickstart, "choose_pictures", lambda picture_set: fake)
    quickstart.main(["--root", str(root), "--seed", str(seed)])
    written = [p for p in root.rglob("*") if p.suffix in {".json", ".jsonl"}]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in written}


def test_the_same_seed_writes_the_same_bytes(pictures, tmp_path, monkeypatch):
    first = run_quickstart(tmp_path / "a", pictures, monkeypatch, seed=3)
    again = run_quickstart(tmp_path / "a", pictures, monkeypatch, seed=3)
    elsewhere = run_quickstart(tmp_path / "b", pictures, monkeypatch, seed=3)
    other = run_quickstart(tmp_path / "c", pictures, monkeypatch, seed=4)
    assert first == again == elsewhere
    for name in ("align.json", "finetune.json", "heldout/yesno.jsonl", "heldout/choice.jsonl"):
        assert first[name] != other[name]


def test_the_summary_counts_what_the_files_hold(pictures, tmp_path, monkeypatch):
    files = run_quickstart(tmp_path, pictures, monkeypatch, seed=0)
    summary = json.loads(files["quickstart_data.json"])
    assert summary["rows"]["align"] == len(json.loads(files["align.json"]))
    assert summary["rows"]["finetune"] == len(json.loads(files["finetune.json"]))
    for task in ("yesno", "choice", "short"):
        lines = files[f"heldout/{task}.jsonl"].decode().splitlines()
        assert summary["rows"][f"heldout/{task}"] == len(lines)
        assert all((tmp_path / json.loads(line)["image"]).exists() for line in lines)
    assert summary["kinds"] == {kind: {"train": 9, "heldout": 3} for kind in KINDS}
    assert summary["seed"] == 0


def test_auto_takes_the_stamps_only_where_apt_is(monkeypatch):
    monkeypatch.setattr(quickstart.shutil, "which", lambda tool: None)
    assert "PyPI" in quickstart.choose_pictures("auto").source
    monkeypatch.setattr(quickstart.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    assert "Debian" in quickstart.choose_pictures("auto").source
