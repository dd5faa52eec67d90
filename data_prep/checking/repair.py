"""Pictures whose name says JPEG and whose content, or the only file that is there, is another.

Nothing is lost: a file that exists is never written over, only a JPEG's name is given to a JPEG
once what stood there lies beside it under its true extension. A repair that was done or half done
before is recognised, so a repair may be killed and asked for again.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from data_prep.checking.findings import MISSING, PictureFinding, content_format
from llava_compete.data.images import ImageFolder

QUALITY = 95
UNFINISHED = ".repairing-"  # begins the name of a folder that a killed repair leaves; it may go
MADE, REWRITTEN = "made_from_beside", "rewritten_content_kept_beside"


class Repair(NamedTuple):
    """What is to be done to ``file``, and ``status``: possible, done or refused (``message``)."""

    file: str
    action: str
    beside: str
    status: str = "possible"
    message: str = ""


def repair_of(picture: PictureFinding) -> Repair:
    """The repair that ``picture`` (one with a file ``beside``) stands for, not yet done."""
    action = MADE if picture.kind == MISSING else REWRITTEN
    return Repair(picture.file, action, picture.beside)


def carry_out(images: ImageFolder, repair: Repair) -> Repair:
    """Do ``repair``; what comes back says whether it is done."""
    try:
        if not _is_jpeg(images, repair.file):
            if repair.action == REWRITTEN:
                _keep(images.find(repair.file, ""), images.root / repair.beside)
            _write_jpeg(images, repair)
    except (OSError, ValueError) as error:
        return repair._replace(status="refused", message=str(error))
    return repair._replace(status="done")


def _is_jpeg(images: ImageFolder, file: str) -> bool:
    if not (images.root / file).is_file():
        return False
    return content_format(images.find(file, "")) == "JPEG"


def _keep(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, which may be there already if it holds the same bytes."""
    if target.exists():
        if filecmp.cmp(source, target, shallow=False):
            return
        raise ValueError(
            f"{target} exists and holds something else than {source}: move one of the two away"
        )
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as work:
        copy = Path(work, target.name)
        shutil.copyfile(source, copy)
        os.link(copy, target)  # unlike a rename, refuses a file that has come meanwhile


def _write_jpeg(images: ImageFolder, repair: Repair) -> None:
    """The first picture of ``repair.beside`` as ``repair.file``, whole or not at all."""
    place = images.root / repair.file
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place.parent) as work:
        made = Path(work, place.name)
        with images.open(repair.beside, "") as image:
            image.save(made, format="JPEG", quality=QUALITY)
        if repair.action == MADE:
            os.link(made, place)
        else:
            made.replace(place)
