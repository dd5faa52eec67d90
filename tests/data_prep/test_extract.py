"""Archives made here, good and bad, and where their files end up."""

import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.extract import BadArchiveError, merge, unpack

NOISE = random.Random(0).randbytes(80_000)
FILES = {"train/a.jpg": b"a" * 5000, "train/b/c.png": NOISE[:3000], "empty.txt": b""}
SIZES = {name: len(content) for name, content in FILES.items()}


def make_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_targz(path: Path, files: dict[str, bytes]) -> None:
    make_tar(path, files, "w:gz")


MAKERS = {"zip": make_zip, "tar": make_tar, "tar.gz": make_targz}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refuse(archive: Path, match: str, limit: int = 10**6) -> None:
    """`unpack` refuses ``archive`` and leaves nothing outside its folder."""
    before = set(archive.parent.iterdir())
    with pytest.raises(BadArchiveError, match=match):
        unpack(archive, archive.parent / "out", limit=limit)
    assert set(archive.parent.iterdir()) - before <= {archive.parent / "out"}


@makers
def test_files_come_out_as_they_went_in(make: Callable, tmp_path: Path) -> None:
    make(tmp_path / "a", FILES)
    assert unpack(tmp_path / "a", tmp_path / "out", limit=8000) == SIZES
    assert read(tmp_path / "out") == FILES


@makers
def test_flatten_drops_folders_and_refuses_two_files_of_one_name(
    make: Callable, tmp_path: Path
) -> None:
    make(tmp_path / "a", FILES)
    sizes = unpack(tmp_path / "a", tmp_path / "flat", limit=8000, flatten=True)
    assert set(sizes) == {"a.jpg", "c.png", "empty.txt"} == set(read(tmp_path / "flat"))
    make(tmp_path / "b", {"x/a.jpg": b"1", "y/a.jpg": b"2"})
    with pytest.raises(BadArchiveError, match=r"'a\.jpg' twice"):
        unpack(tmp_path / "b", tmp_path / "flat2", limit=8000, flatten=True)


@makers
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/llava_compete_evil"])
def test_a_path_out_of_the_folder_is_refused(make: Callable, name: str, tmp_path: Path) -> None:
    make(tmp_path / "a", {"good": b"1", name: b"2"})
    refuse(tmp_path / "a", "leads out of the folder")
    assert not Path("/tmp/llava_compete_evil").exists()


@makers
def test_more_bytes_than_expected_are_refused(make: Callable, tmp_path: Path) -> None:
    make(tmp_path / "a", {"zeros": b"\0" * 300_000, "more": b"\0" * 300_000})
    refuse(tmp_path / "a", r"declare 600,000 bytes and more than 599,999", limit=599_999)


@makers
def test_an_archive_cut_short_is_refused(make: Callable, tmp_path: Path) -> None:
    make(tmp_path / "whole", {"a": NOISE[:40_000], "b": NOISE[40_000:]})
    (tmp_path / "a").write_bytes((tmp_path / "whole").read_bytes()[:50_000])
    refuse(tmp_path / "a", "damaged|zip without its end")


@pytest.mark.parametrize("make", [make_zip, make_targz])
def test_a_changed_byte_is_found(make: Callable, tmp_path: Path) -> None:
    make(tmp_path / "a", {"a": b"a" * 20_000 + NOISE[:20_000]})
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[10_000] ^= 0xFF
    (tmp_path / "a").write_bytes(damaged)
    refuse(tmp_path / "a", "damaged")


def test_a_web_page_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("<html>please log in</html>")
    refuse(tmp_path / "a", "is no zip and no tar: it begins with b'<html>please")


def test_a_zip_that_declares_less_than_it_holds_is_refused(tmp_path: Path) -> None:
    make_zip(tmp_path / "a", {"bomb": b"\0" * 500_000})
    lying = (tmp_path / "a").read_bytes().replace(struct.pack("<I", 500_000), struct.pack("<I", 10))
    (tmp_path / "a").write_bytes(lying)
    refuse(tmp_path / "a", "damaged")
    assert sum(len(content) for content in read(tmp_path / "out").values()) <= 10


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refuse(tmp_path / "a", "'link' is a link or a device")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "../../etc/passwd"
    with tarfile.open(tmp_path / "a", "w") as archive:
        archive.addfile(info)
    refuse(tmp_path / "a", "'link' is a link or a device")


def test_a_member_with_a_password_is_refused(tmp_path: Path) -> None:
    make_zip(tmp_path / "a", {"secret": b"1"})
    content = bytearray((tmp_path / "a").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # flag bit 0 of the central directory
    (tmp_path / "a").write_bytes(content)
    refuse(tmp_path / "a", "'secret' needs a password")


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    make_zip(tmp_path / "a", {"a.jpg": b"1", "__MACOSX/._a.jpg": b"2"})
    assert unpack(tmp_path / "a", tmp_path / "out", limit=10) == {"a.jpg": 1}


def test_merge_adds_to_a_folder_and_replaces_what_it_brings(tmp_path: Path) -> None:
    for name, content in {
        "new/x/1": "1",
        "new/x/2": "2",
        "old/x/1": "damaged",
        "old/x/3": "3",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    merge(tmp_path / "new", tmp_path / "old")
    assert read(tmp_path / "old") == {"x/1": b"1", "x/2": b"2", "x/3": b"3"}
    assert not (tmp_path / "new").exists()
