"""One attempt to bring a file: ask the server what it has, let pypdl fetch it, look at each answer.

pypdl takes every answer for the part that it asked for, retries without waiting and says neither
why nor that a file is wrong.  Each answer is checked here before a byte of it is written.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from pypdl import Pypdl
from tqdm import tqdm

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PASSING = (408, 425, 429)  # the codes below 500 that a later request may not get


class DownloadError(OSError):
    """What stands in the way of a file; ``passing`` says whether another try may help."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class StrangeAnswerError(DownloadError):
    """Not the part that was asked for, or a part of another version of the file."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file."""

    url: str
    size: int | None
    version: str  # ETag, else Last-Modified, else empty
    ranges: bool  # whether it sends parts


def ask(url: str, timeout: float) -> Remote:
    """Size, version and whether parts can be had, from a request of the first byte."""
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            headers, status = answer.headers, answer.status
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{url}: {_meaning(error.code)}", passing=may_pass(error.code)
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {error}", passing=True) from error
    if headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{url}: a web page came in place of the file; does it need a login, or a proxy's?"
        )
    total = headers.get("Content-Length")
    if status == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
    size = int(total) if total and total.isdigit() else None
    ranges = status == 206 and size is not None
    return Remote(url, size, _version(headers.get), ranges)


def _version(header: Callable[[str], str | None]) -> str:
    return header("ETag") or header("Last-Modified") or ""


def may_pass(status: int) -> bool:
    """Whether a later request may get another answer than HTTP ``status``."""
    return status >= 500 or status in PASSING


def _meaning(status: int) -> str:
    fixes = {401: "; log in to its site", 403: "; log in to its site", 404: "; has it moved?"}
    return f"HTTP {status} {http.client.responses.get(status, '')}".strip() + fixes.get(status, "")


class _Faults(logging.Handler):
    """Keeps the last exception that pypdl writes to its log; it raises none."""

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.last = record.exc_info[1]


def transfer(remote: Remote, part: Path, parts: int, stall: float) -> None:
    """Let pypdl bring the file to ``part``; raises what stopped it, and keeps what came."""
    faults, quiet = _Faults(), logging.Logger("pypdl")  # its own logger would write ./pypdl.log
    quiet.addHandler(faults)

    async def check_answer(answer: aiohttp.ClientResponse) -> None:
        fault = _fault(answer, remote)
        if fault is not None:
            answer.close()
            raise fault

    loader = Pypdl(allow_reuse=True, logger=quiet)
    try:
        loader.start(
            remote.url,
            file_path=str(part),
            multisegment=parts > 1,
            segments=parts,
            etag_validation=False,  # `download` has done it, and knows Last-Modified too
            display=False,
            block=False,
            raise_for_status=check_answer,
            skip_auto_headers=("Accept-Encoding",),  # a packed answer has no size to check
            timeout=aiohttp.ClientTimeout(sock_connect=stall, sock_read=stall),
            proxy=_proxy(remote.url),
        )
        _watch(loader, part, remote.size, stall)
    finally:
        loader.shutdown()
    if loader.failed:
        if isinstance(faults.last, DownloadError):
            raise faults.last
        full = isinstance(faults.last, OSError) and faults.last.errno in DISK_FULL
        raise DownloadError(f"{remote.url}: {faults.last}", passing=not full) from faults.last


def _fault(answer: aiohttp.ClientResponse, remote: Remote) -> DownloadError | None:
    """What is wrong with an answer, before its body is read."""
    if answer.status >= 400:
        return DownloadError(
            f"{remote.url}: {_meaning(answer.status)}", passing=may_pass(answer.status)
        )
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", answer.request_info.headers.get("Range", ""))
    if asked is None:
        return None
    if _version(answer.headers.get) != remote.version:
        return StrangeAnswerError(f"{remote.url}: it changed under way", passing=True)
    wanted = f"bytes {asked[1]}-{asked[2]}/{remote.size}"
    if answer.status != 206 or answer.headers.get("Content-Range") != wanted:
        return StrangeAnswerError(
            f"{remote.url}: asked for {wanted}, got {answer.headers.get('Content-Range')!r} "
            f"(HTTP {answer.status})",
            passing=True,
        )
    return None


def _proxy(url: str) -> str | None:
    """The proxy of the environment (https_proxy, no_proxy ...), which pypdl does not read."""
    place = urlsplit(url)
    if urllib.request.proxy_bypass(place.netloc):
        return None
    return urllib.request.getproxies().get(place.scheme)


def _watch(loader: Pypdl, part: Path, size: int | None, stall: float) -> None:
    """Show the bytes as they come; DownloadError if none comes for three times ``stall``."""
    name = part.name.removesuffix(".part")
    moved, before = time.monotonic(), sizes_of(part)
    with tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while not loader.completed:
            time.sleep(0.05)
            sizes = sizes_of(part)
            bar.update(max(0, min(sum(sizes.values()), size or sum(sizes.values())) - bar.n))
            if sizes != before:
                moved, before = time.monotonic(), sizes
            elif time.monotonic() - moved > 3 * stall:
                raise DownloadError(f"{name}: nothing came for {3 * stall:.0f} s", passing=True)


def sizes_of(part: Path) -> dict[str, int]:
    """Of the file being made and the parts of it that wait to be joined."""
    sizes: dict[str, int] = {}
    for path in part.parent.glob(part.name + "*"):
        if path == part or path.suffix[1:].isdigit():
            with contextlib.suppress(FileNotFoundError):  # joined meanwhile
                sizes[path.name] = path.stat().st_size
    return sizes
