"""A data set in the shape of the 665K mix, made up, with faults planted in it on purpose.

python -m tests.data_prep.planted make DIR --rows 20000
python -m data_prep check DIR/mix.json --root DIR/pictures
python -m tests.data_prep.planted compare DIR

Sources stand in the mix's proportions, three COCO rows to a picture as there; pictures are JPEGs of
a size that is usual for their source. DIR/expected.json says what a check has to find, all of it
and nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data_prep.checking.splits import SPLITS
from tests.data_prep.painter import Painter
from tests.data_prep.plants import Garden, plant_all

ROWS_A_COCO_PICTURE = 3
ROWS_A_PLANT = 500  # so many rows have every plant once
PLACES = {
    "coco": "coco/train2017/{:012}.jpg",
    "gqa": "gqa/images/{}.jpg",
    "ocr_vqa": "ocr_vqa/images/{:010}.jpg",
    "textvqa": "textvqa/train_images/{:016x}.jpg",
    "vg": "vg/VG_100K/{}.jpg",
}
SIZES = {  # usual ones
    "coco": (640, 480),
    "gqa": (500, 375),
    "ocr_vqa": (330, 500),
    "textvqa": (1024, 768),
    "vg": (800, 600),
}

Row = dict[str, Any]


class Expected(NamedTuple):
    """What a check finds: (row, kind, file or ""), (kind, what), (file, action, beside)."""

    faults: set[tuple[int, str, str]]
    notes: set[tuple[str, Any]]
    repairs: set[tuple[str, str, str]]


def make(folder: Path, num_rows: int, *, shrink: int = 1, seed: int = 0) -> Expected:
    """Write ``folder/mix.json`` and ``folder/pictures``, 1/``shrink`` of their usual size."""
    root = folder / "pictures"
    rows = base_rows(num_rows, seed)
    painter = Painter(seed)
    for source, file in tqdm(
        sorted({(source_of(r), r["image"]) for r in rows if "image" in r}), disable=None
    ):
        width, height = SIZES[source]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(painter.jpeg((width // shrink, height // shrink)))
    garden = Garden(rows, root, painter, seed)
    for _ in range(max(1, num_rows // ROWS_A_PLANT)):
        plant_all(garden)
    for key, count in Counter(key for row in rows for key in row).items():
        if key not in ("id", "image", "conversations", "source", "length", "length_by"):
            garden.notes.add(("unknown_key", (key, count)))
    garden.notes |= repeated_ids(rows, garden)
    (folder / "mix.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return Expected(garden.faults, garden.notes, garden.repairs)


def base_rows(num_rows: int, seed: int) -> list[Row]:
    """Rows without a fault, sources mixed; each picture's rows but COCO's are one."""
    split = SPLITS["llava_mix665k"]
    total = sum(split.values())
    rows = []
    for source, count in split.items():
        for place in range(round(num_rows * count / total)):
            rows.append(_row(source, place))
    random.Random(seed).shuffle(rows)
    return rows


def _row(source: str, place: int) -> Row:
    number = place // ROWS_A_COCO_PICTURE if source == "coco" else place
    turns = []
    for turn in range(1 + place % 4):
        question = f"What is at place {turn} of {source} {place}?"
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": f"It is number {place + turn}. " * (1 + place % 7)})
    if source == "text":
        return {"id": f"t{place}_0", "model": "", "conversations": turns}
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    name: Any = 1_000_000 + number if source == "vg" else f"{source}{number:012}"
    return {"id": name, "image": PLACES[source].format(number), "conversations": turns}


def source_of(row: Row) -> str:
    return row["image"].split("/")[0] if "image" in row else "text"


def repeated_ids(rows: Sequence[Row], garden: Garden) -> set[tuple[str, Any]]:
    """The notes for ids of several rows, rows that are there twice left out."""
    twice = {row for row, kind, _ in garden.faults if kind == "repeated_row"}
    by_id = defaultdict(list)
    for number, row in enumerate(rows):
        if row.get("id") is not None and number not in twice:
            by_id[str(row["id"])].append(number)
    return {("repeated_id", tuple(numbers)) for numbers in by_id.values() if len(numbers) > 1}


def found(report: Path) -> Expected:
    """What the lists of a check in the folder ``report`` say, in the form of ``Expected``."""
    faults, notes, repairs = (
        [json.loads(line) for line in (report / f"{name}.jsonl").read_text().splitlines()]
        for name in ("faults", "notes", "repairs")
    )
    result = Expected(
        {(line["row"], line["kind"], line.get("file", "")) for line in faults},
        {(line["kind"], _what(line)) for line in notes},
        {(line["file"], line["action"], line["beside"]) for line in repairs},
    )
    assert list(map(len, result)) == [len(faults), len(notes), len(repairs)], (
        "a line is there twice"
    )
    return result


def _what(line: dict[str, Any]) -> Any:
    match line["kind"]:
        case "wrong_extension":
            return line["file"]
        case "same_picture":
            return tuple(sorted(line["files"]))
        case "unknown_key":
            return (line["key"], line["rows"])
    return tuple(line["rows"])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--rows", type=int, default=20_000)
    args = parser.parse_args(argv)
    file = args.folder / "expected.json"
    if args.what == "make":
        args.folder.mkdir(parents=True)
        expected = make(args.folder, args.rows)
        file.write_text(json.dumps([_in_order(part) for part in expected]), encoding="utf-8")
        return
    expected = json.loads(file.read_text(encoding="utf-8"))
    lists = json.loads(json.dumps(list(map(_in_order, found(args.folder / "mix.json.check")))))
    for name, planted, listed in zip(Expected._fields, expected, lists, strict=True):
        missed = [x for x in planted if x not in listed]
        invented = [x for x in listed if x not in planted]
        print(f"{name}: {len(planted)} planted, {len(missed)} missed, {len(invented)} invented")
        for line in (*missed[:9], *invented[:9]):
            print(f"  {line}")


def _in_order(things: set[Any]) -> list[Any]:
    return sorted(things, key=str)


if __name__ == "__main__":
    main(sys.argv[1:])
