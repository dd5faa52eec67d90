"""Files of a data set on the Hugging Face hub.

huggingface_hub does the transfer, its resuming and its parallel files. The commit, the sizes and
the digests are asked from the hub first, and what came is held to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from data_prep.download import Digests, Patience, check, persist
from data_prep.sources import Hub
from data_prep.transfer import DISK_FULL, DownloadError, may_pass

BROKEN = (OSError, HTTPError)  # the hub's own errors are among them
SHOWN = 5


class Listed(NamedTuple):
    """A file as the hub lists it: large ones by SHA-256, small ones by git's digest."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


class Copy(NamedTuple):
    """What `fetch_hub` brought."""

    commit: str
    files: dict[str, Digests]


def listing(hub: Hub) -> tuple[str, list[Listed]]:
    """Commit of ``hub``'s revision and the files that it asks for, of which there must be one."""
    try:
        info = HfApi(endpoint=hub.endpoint).dataset_info(
            hub.repo, revision=hub.revision, files_metadata=True
        )
    except BROKEN as error:
        raise _fault(hub, error) from error
    listed = [
        Listed(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or []
    ]
    asked = list(
        filter_repo_objects(listed, allow_patterns=list(hub.files), key=lambda file: file.name)
    )
    if not asked:
        there = ", ".join(file.name for file in listed[:SHOWN])
        raise DownloadError(f"{hub.repo} has no file {' or '.join(hub.files)}; it has {there} ...")
    assert info.sha is not None
    return info.sha, asked


def fetch_hub(hub: Hub, folder: Path, patience: Patience) -> Copy:
    """Bring ``hub``'s files below ``folder``, under their names in the repository, and check them.

    Files that are there already and whole are not fetched again.
    """

    def attempt() -> Copy:
        commit, files = listing(hub)
        try:
            snapshot_download(
                hub.repo,
                repo_type="dataset",
                revision=commit,
                allow_patterns=[file.name for file in files],
                local_dir=folder,
                endpoint=hub.endpoint,
            )
        except BROKEN as error:
            raise _fault(hub, error) from error
        return Copy(commit, {file.name: _check(hub, folder, file) for file in files})

    return persist(attempt, lambda: held_of(folder), patience)


def held_of(folder: Path) -> int:
    """Bytes below ``folder``, unfinished files included."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def total(files: Sequence[Listed]) -> int:
    return sum(file.size for file in files)


def _check(hub: Hub, folder: Path, file: Listed) -> Digests:
    """Digests of a file that came; if it is not what the hub lists, it goes."""
    path, name = folder / file.name, f"{hub.repo}/{file.name}"
    checksum = f"sha256:{file.sha256}" if file.sha256 else None
    try:
        found = check(path, name, file.size, checksum)
        if file.sha256 is None and file.git_sha1 not in (None, _git_sha1(path)):
            raise DownloadError(f"{name}: it is not the file that the hub lists", passing=True)
    except DownloadError:
        path.unlink()
        raise
    return found


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _fault(hub: Hub, error: OSError | HTTPError) -> DownloadError:
    """``error`` in a line, with what to do if another try cannot help."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    fix, passing = "", True
    if isinstance(error, GatedRepoError):
        fix, passing = "; accept its terms on its page, then `hf auth login`", False
    elif isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        fix, passing = "; has it moved, or does it need `hf auth login`?", False
    elif isinstance(error, OfflineModeIsEnabled):
        fix, passing = "; unset HF_HUB_OFFLINE", False
    elif isinstance(error, HfHubHTTPError):
        passing = may_pass(error.response.status_code)
    elif isinstance(error, OSError):
        passing = error.errno not in DISK_FULL
    return DownloadError(f"{hub.repo}: {lines[0]}{fix}", passing=passing)
