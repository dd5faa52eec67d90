"""Archives onto the disk: nothing outside the folder, nothing but files, no more than was declared.

Zip and tar (plain, gz, bz2, xz), told apart by content.  An archive is taken whole or refused, so
the caller gives an empty folder and moves it into place when `unpack` has returned.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

BLOCK = 1 << 20
SKIPPED = "__MACOSX/"  # what macOS adds to its zips
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # zipfile's, of a compression that it does not know
)


class BadArchiveError(ValueError):
    """The archive cannot be taken as it is."""


class Member(NamedTuple):
    """A file in an archive: its place below the folder, its declared size, its content."""

    place: PurePosixPath
    size: int
    content: IO[bytes]


def unpack(archive: Path, folder: Path, *, limit: int, flatten: bool = False) -> dict[str, int]:
    """Write what ``archive`` holds below ``folder``; path relative to it -> bytes, of every file.

    ``limit`` is how many bytes all files together may have.  ``flatten`` drops the folders inside
    the archive.  BadArchiveError names the member and the reason: damage, a path that leaves the
    folder, a link, a device, a password, two files of one name, more than ``limit``.
    """
    sizes: dict[str, int] = {}
    total = 0
    try:
        with tqdm(unit="file", desc=f"unpacking {archive.name}", disable=None) as bar:
            for place, size, content in _members(archive, flatten, limit):
                total += size
                if total > limit:
                    raise _too_much(archive, total, limit)
                if str(place) in sizes:
                    raise BadArchiveError(f"{archive.name}: it holds {str(place)!r} twice")
                _write(content, size, folder / place)
                sizes[str(place)] = size
                bar.update()
    except DAMAGE as error:
        last = next(reversed(sizes), None)
        where = f"after {last!r}" if last else "at its beginning"
        raise BadArchiveError(f"{archive.name} is damaged {where}: {error}") from error
    except OSError as error:
        # gzip and bz2 report damage so, without a number
        if error.errno is not None:
            raise
        raise BadArchiveError(f"{archive.name} is damaged: {error}") from error
    return sizes


def merge(source: Path, target: Path) -> None:
    """Move every file below ``source`` to its place below ``target``, over what is there."""
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            _move(Path(folder, name), place / name)
    shutil.rmtree(source)


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = target.with_name(f".{target.name}.arriving")  # the folder is on another disk
        shutil.copyfile(source, aside)
        aside.replace(target)
        source.unlink()


def _members(archive: Path, flatten: bool, limit: int) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        return _zip_members(archive, flatten, limit)
    if tarfile.is_tarfile(archive):
        return _tar_members(archive, flatten)
    with archive.open("rb") as file:
        head = file.read(16)
    cut = ", so it is a zip without its end" if head.startswith(b"PK") else ""
    raise BadArchiveError(f"{archive.name} is no zip and no tar: it begins with {head!r}{cut}")


def _zip_members(archive: Path, flatten: bool, limit: int) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if not info.filename.startswith(SKIPPED)]
        total = sum(info.file_size for info in members)
        if total > limit:
            raise _too_much(archive, total, limit)
        for info in members:
            place = _place(archive, info.filename, flatten)
            kind = info.external_attr >> 16 & 0o170000  # of the mode, where the zip has one
            if kind not in (0, 0o100000, 0o040000):
                raise _no_file(archive, info.filename)
            if info.flag_bits & 1:
                raise BadArchiveError(f"{archive.name}: {info.filename!r} needs a password")
            if not info.is_dir():
                with opened.open(info) as content:
                    yield Member(place, info.file_size, content)


def _tar_members(archive: Path, flatten: bool) -> Iterator[Member]:
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            place = _place(archive, info.name, flatten)
            if not (info.isreg() or info.isdir()):
                raise _no_file(archive, info.name)
            content = opened.extractfile(info)
            if content is not None:
                yield Member(place, info.size, content)
        while opened.fileobj is not None and opened.fileobj.read(BLOCK):
            pass  # gzip compares its checksum at the end of the file, which lies behind tar's


def _no_file(archive: Path, name: str) -> BadArchiveError:
    return BadArchiveError(
        f"{archive.name}: {name!r} is a link or a device; only files and folders are taken"
    )


def _place(archive: Path, name: str, flatten: bool) -> PurePosixPath:
    """Where the member ``name`` goes below the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise BadArchiveError(f"{archive.name}: {name!r} leads out of the folder")
    return PurePosixPath(path.name) if flatten else path


def _too_much(archive: Path, total: int, limit: int) -> BadArchiveError:
    return BadArchiveError(
        f"{archive.name}: its files declare {total:,} bytes and more than {limit:,} were not to "
        "be expected"
    )


def _write(content: IO[bytes], size: int, target: Path) -> None:
    """Copy ``content``, which must have ``size`` bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, BLOCK)
        if file.tell() != size:
            raise EOFError(f"{target.name} has {file.tell():,} bytes and declares {size:,}")
