"""One source from its place on the net to its place below the root."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from data_prep import receipts
from data_prep.download import Digests, Patience, check, digests, download
from data_prep.extract import BadArchiveError, merge, unpack
from data_prep.hub import fetch_hub, held_of
from data_prep.receipts import FOLDER, Receipt
from data_prep.sources import ByHand, Hub, Source, Web
from data_prep.transfer import DownloadError

BOUND = 4  # an archive may hold so many times what the table says; more is taken for a bomb
SHOWN = 3


@dataclass(frozen=True)
class State:
    """Whether a source is there, in words for a person."""

    there: bool
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Download:
    """Files below ``folder`` that are whole: name -> size and SHA-256."""

    folder: Path
    origin: str
    files: dict[str, dict[str, int | str]]


@dataclass(frozen=True)
class Job:
    """A source that belongs below ``root``; ``key`` names its receipt."""

    source: Source
    key: str
    root: Path
    parts: int
    patience: Patience

    @property
    def target(self) -> Path:
        return self.root / self.source.into

    @property
    def origin(self) -> str:
        get = self.source.get
        if isinstance(get, Hub):
            return f"hub data set {get.repo} ({get.revision}): {', '.join(get.files)}"
        return get.url

    @property
    def work(self) -> Path:
        """Holds what is under way: the download, then what the archive held."""
        return self.root / FOLDER / self.key

    def held(self) -> int:
        """Bytes of an unfinished download."""
        return held_of(self.work)

    def sized(self, size: int | None) -> Job:
        """The same job, its source's download being ``size``."""
        return replace(self, source=replace(self.source, download=size))

    def state(self) -> State:
        receipt = receipts.read(self.root, self.key)
        if receipt is None:
            held = self.held()
            return State(False, f"begun, {held:,} bytes are here" if held else "absent")
        damaged = list(receipts.damaged(self.root, receipt))
        if damaged:
            names = ", ".join(damaged[:SHOWN])
            count = f"{len(damaged)} of {receipt.num_files} files"
            return State(False, f"damaged: {count} missing or changed ({names})")
        return State(True, f"there, {receipt.num_files} files")

    def run(self, keep_archive: bool) -> Receipt:
        """Fetch and install the source; ValueError or OSError says what is in the way."""
        self.work.mkdir(parents=True, exist_ok=True)
        lock = self.work.with_name(self.key + ".lock")
        try:
            with FileLock(lock, timeout=0):
                return self._run(keep_archive)
        except Timeout:
            raise ValueError(f"another fetch is at work on it ({lock} is locked)") from None

    def _run(self, keep_archive: bool) -> Receipt:
        come = self._kept() or self._download()
        sizes = self._unpack(come) if self.source.unpack else self._place(come)
        files = {str(Path(self.source.into, name)): size for name, size in sizes.items()}
        receipt = Receipt(
            source=self.source.name,
            origin=come.origin,
            downloads=come.files,
            num_files=len(files),
            files=files,
        )
        receipts.write(self.root, self.key, receipt)
        if not (keep_archive and self.source.unpack):
            shutil.rmtree(self.work)
        return receipt

    @property
    def _note(self) -> Path:
        """Says that the download is whole."""
        return self.work / "download.json"

    def _kept(self) -> Download | None:
        """What an earlier run has downloaded, if it is still what it was."""
        if not self._note.is_file():
            return None
        noted = json.loads(self._note.read_text())
        kept = Download(self.work / "files", noted["origin"], noted["files"])
        try:
            for name, said in kept.files.items():
                check(kept.folder / name, name, int(said["size"]), f"sha256:{said['sha256']}")
        except (DownloadError, FileNotFoundError):
            shutil.rmtree(self.work)
            return None
        return kept

    def _download(self) -> Download:
        get, folder = self.source.get, self.work / "files"
        if isinstance(get, ByHand):
            return self._by_hand(get)
        if isinstance(get, Web):
            name, origin = PurePosixPath(urlsplit(get.url).path).name, get.url
            found = {
                name: download(
                    get.url,
                    folder / name,
                    size=get.size,
                    checksum=get.checksum,
                    parts=self.parts,
                    patience=self.patience,
                )
            }
        else:
            copy = fetch_hub(get, folder, self.patience)
            origin, found = f"hub data set {get.repo} at {copy.commit}", copy.files
        come = Download(folder, origin, _noted(folder, found))
        receipts.write_json(self._note, {"origin": origin, "files": come.files})
        return come

    def _by_hand(self, get: ByHand) -> Download:
        if not (self.root / get.file).is_file():
            raise ValueError(
                f"get it by hand: {get.steps}, {get.url}; put it at {self.root / get.file} and run "
                "this again"
            )
        found = {get.file: digests(self.root / get.file)}
        return Download(self.root, get.url, _noted(self.root, found))

    def _unpack(self, come: Download) -> dict[str, int]:
        """Sizes of the files that the archives hold, which are in place then."""
        aside = self.work / "unpacked"
        if aside.exists():
            shutil.rmtree(aside)
        limit = BOUND * (self.source.on_disk() or 0)
        sizes: dict[str, int] = {}
        try:
            for name in come.files:
                sizes |= unpack(come.folder / name, aside, limit=limit, flatten=self.source.flatten)
        except BadArchiveError as error:
            if isinstance(self.source.get, ByHand):
                raise
            shutil.rmtree(self.work)
            raise BadArchiveError(
                f"{error}; it is removed: run this again, and if a fresh copy is refused too, "
                f"{self.origin} is at fault"
            ) from error
        merge(aside, self.target)
        return sizes

    def _place(self, come: Download) -> dict[str, int]:
        """Sizes of the files that were downloaded, which are in place then."""
        shutil.rmtree(come.folder / ".cache", ignore_errors=True)  # huggingface_hub's notes
        merge(come.folder, self.target)
        return {name: int(said["size"]) for name, said in come.files.items()}


def _noted(folder: Path, found: dict[str, Digests]) -> dict[str, dict[str, int | str]]:
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": digests.sha256}
        for name, digests in found.items()
    }
