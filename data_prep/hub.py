"""Files of a data set on the Hugging Face hub.

huggingface_hub does the transfer, its resuming and its parallel files. The commit, the sizes and
the SHA-256 of large files are asked from the hub first, and what came is held to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from data_prep.download import Digests, Patience, check, persist
from data_prep.sources import Hub
from data_prep.transfer import DownloadError

FINAL = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, OfflineModeIsEnabled)
BROKEN = (HfHubHTTPError, httpx2.HTTPError, LocalEntryNotFoundError, FileMetadataError)
SHOWN = 5


class Listed(NamedTuple):
    """A file as the hub lists it; the SHA-256 of small ones is not listed."""

    name: str
    size: int
    sha256: str | None


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
    except FINAL as error:
        raise DownloadError(f"{hub.repo}: {_first_line(error)}; {_fix(error)}") from error
    except BROKEN as error:
        raise DownloadError(f"{hub.repo}: {_first_line(error)}", passing=True) from error
    listed = [
        Listed(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
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
        except FINAL as error:
            raise DownloadError(f"{hub.repo}: {_first_line(error)}; {_fix(error)}") from error
        except BROKEN as error:
            raise DownloadError(f"{hub.repo}: {_first_line(error)}", passing=True) from error
        return Copy(commit, {file.name: _check(hub, folder, file) for file in files})

    return persist(attempt, lambda: held_of(folder), patience)


def held_of(folder: Path) -> int:
    """Bytes below ``folder``, unfinished files included."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def total(files: Sequence[Listed]) -> int:
    return sum(file.size for file in files)


def _check(hub: Hub, folder: Path, file: Listed) -> Digests:
    """Digests of a file that came; if it is not what the hub lists, it goes."""
    path = folder / file.name
    checksum = f"sha256:{file.sha256}" if file.sha256 else None
    try:
        return check(path, f"{hub.repo}/{file.name}", file.size, checksum)
    except DownloadError:
        path.unlink()
        raise


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _fix(error: BaseException) -> str:
    if isinstance(error, GatedRepoError):
        return "accept its terms on its page, then `hf auth login`"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE"
    return "has it moved, or does it need `hf auth login`?"
