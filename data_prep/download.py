"""A file over HTTP, whole or not at all.

The transfer (`transfer.py`) is pypdl's: parallel parts, kept on disk when the connection breaks.
What failed is tried again here, parts of another version of the file are dropped, and the file is
checked before it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from data_prep.transfer import DownloadError, Remote, StrangeAnswerError, ask, sizes_of, transfer

log = logging.getLogger(__name__)

PARTS = 8
BLOCK = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a broken download is tried again."""

    tries: int = 8  # failures in a row that brought no byte
    wait: float = 2.0  # seconds before the second try; doubles from try to try
    longest_wait: float = 60.0
    stall: float = 60.0  # seconds without a byte that count as a failure


PATIENCE = Patience()


class Digests(NamedTuple):
    """Of a file: hex digits of both, whichever the source is known by."""

    sha256: str
    md5: str


def digests(path: Path) -> Digests:
    """SHA-256 and MD5 of the file at ``path``, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    return Digests(sha256.hexdigest(), md5.hexdigest())


def check(path: Path, name: str, size: int | None, checksum: str | None) -> Digests:
    """Digests of ``path``; DownloadError unless it has ``size`` and ``checksum`` (where known).

    ``checksum`` is "sha256:..." or "md5:...".
    """
    there = path.stat().st_size
    if size is not None and there != size:
        raise DownloadError(f"{name}: {there:,} bytes came where {size:,} are known", passing=True)
    found = digests(path)
    if checksum is not None:
        kind, wanted = checksum.split(":")
        have = found._asdict()[kind]
        if have != wanted:
            raise DownloadError(f"{name}: its {kind} is {have}, not {wanted}", passing=True)
    return found


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    parts: int = PARTS,
    patience: Patience = PATIENCE,
) -> Digests:
    """Fetch ``url`` to ``target``, which appears only when it is whole; its digests.

    ``size`` and ``checksum`` are what is known of the file beforehand; both may be None.  Parts
    that a failed call left beside ``target`` are used by the next if the file is still the same.
    From a server that twice answers with something else than the part asked for (mirrors behind
    one name, a proxy that ignores ranges) the file comes through one connection, whose answer can
    only be of one piece.  DownloadError names the last fault when patience is over, and at once
    for what no further try can mend.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    strange = 0

    def attempt() -> Digests:
        nonlocal strange
        remote = ask(url, patience.stall)
        if size is not None and remote.size not in (None, size):
            raise DownloadError(
                f"{url}: {remote.size:,} bytes, but {size:,} are known", passing=True
            )
        in_parts = remote.ranges and parts > 1 and strange < 2
        _keep_or_drop(part, remote, in_parts)
        try:
            transfer(remote, part, parts if in_parts else 1, patience.stall)
        except DownloadError as error:
            strange += isinstance(error, StrangeAnswerError)
            if not in_parts:  # nothing goes on from the middle of one piece
                part.unlink(missing_ok=True)
            raise
        return _accept(part, remote, size, checksum)

    found = persist(attempt, lambda: held(target), patience)
    part.replace(target)
    _drop(part)
    return found


def persist(attempt: Callable[[], T], progress: Callable[[], int], patience: Patience) -> T:
    """What ``attempt`` gives, called again while it fails with DownloadErrors that may pass.

    ``progress`` is the number of bytes on disk.  More of them than ever before means that patience
    begins anew, so a server that always breaks off can be fetched from in the end.
    """
    failures, most, wait = 0, progress(), patience.wait
    while True:
        try:
            return attempt()
        except DownloadError as error:
            there = progress()
            failures = 0 if there > most else failures + 1
            most = max(most, there)
            if not error.passing or failures >= patience.tries:
                kept = f" ({there:,} bytes are kept for when it is run again)" if there else ""
                raise DownloadError(f"{error}{kept}") from error
            wait = patience.wait if failures == 0 else wait
            log.warning("%s; trying again in %.1f s", error, wait)
            time.sleep(wait)
            wait = min(2 * wait, patience.longest_wait)


def held(target: Path) -> int:
    """Bytes that an unfinished download of ``target`` has left on disk."""
    return sum(sizes_of(target.with_name(target.name + ".part")).values())


def _drop(part: Path) -> None:
    for path in part.parent.glob(part.name + "*"):
        path.unlink()


def _keep_or_drop(part: Path, remote: Remote, in_parts: bool) -> None:
    """Drop parts of another version of the file, and those whose table was not written whole."""
    state, table = part.with_name(part.name + ".remote.json"), part.with_name(part.name + ".json")
    said = json.dumps(asdict(remote))
    if not (in_parts and state.is_file() and state.read_text() == said and _is_json(table)):
        _drop(part)
        state.write_text(said)


def _is_json(table: Path) -> bool:
    """Whether the table of parts is readable; none is needed before the first part."""
    try:
        return not table.exists() or isinstance(json.loads(table.read_text()), dict)
    except ValueError:
        return False


def _accept(part: Path, remote: Remote, size: int | None, checksum: str | None) -> Digests:
    """Digests of the file that came; if it is not what was promised, it goes."""
    try:
        return check(part, remote.url, remote.size if size is None else size, checksum)
    except DownloadError:
        part.unlink()
        raise
