"""Files from a server that misbehaves: they end whole, or are refused with the reason."""

import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_prep.download import Patience, digests, download, held, persist
from data_prep.transfer import DownloadError
from tests.data_prep.faulty_server import Fault, FaultyServer

DATA = random.Random(0).randbytes(1_000_000)
OTHER = random.Random(1).randbytes(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SHORT = Patience(tries=12, wait=0.01, longest_wait=0.05, stall=10)
ASK = Fault()  # stands for a proper answer: the first request of a try is `ask`'s, then pypdl's


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "a.bin"


def serve(*faults: Fault, data: bytes = DATA) -> FaultyServer:
    return FaultyServer({"/a.bin": data}, {"/a.bin": list(faults)})


def fetch(server: FaultyServer, target: Path, **known: object) -> None:
    options = {"parts": 4, "patience": SHORT} | known
    download(server.url("/a.bin"), target, **options)  # type: ignore[arg-type]


FAULTS = {
    "none": (ASK,),
    "drops every part once": (ASK, ASK, *[Fault(drop_after=100_000)] * 4),
    "drops again and again": (ASK, ASK, *[Fault(drop_after=60_000)] * 5),
    "promises more than it sends": (ASK, ASK, *[Fault(claim_more=1000)] * 4),
    "ignores ranges": (Fault(ignore_range=True, forever=True),),
    "ignores ranges now and then and drops": (
        *[ASK] * 2,
        *[Fault(drop_after=100_000)] * 4,
        *[ASK] * 2,
        *[Fault(ignore_range=True, drop_after=150_000)] * 4,
    ),
    "another ETag each time": (Fault(fickle_etag=True, forever=True),),
    "no length": (Fault(no_length=True, forever=True),),
    "503, then the file": (Fault(status=503), Fault(status=429)),
    "503 in the middle": (ASK, ASK, ASK, Fault(status=503)),
    "a part of other content": (ASK, ASK, ASK, Fault(body=OTHER)),
    "other content in the middle": (ASK, ASK, ASK, Fault(body=OTHER, ignore_range=True)),
}


PAGE = Fault(body=b"<html>log in</html>", content_type="text/html", ignore_range=True, forever=True)
FINAL = {
    "promises too much for ever": (Fault(claim_more=1000, forever=True), "not completed|asked for"),
    "breaks off for ever": (
        Fault(ignore_range=True, drop_after=500, forever=True),
        "not completed",
    ),
    "503 for ever": (Fault(status=503, forever=True), "HTTP 503 Service Unavailable"),
    "404": (Fault(status=404, forever=True), "HTTP 404 Not Found; has it moved"),
    "403": (Fault(status=403, forever=True), "HTTP 403 Forbidden; log in"),
    "web page": (
        PAGE,
        "a web page came in place of the file",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Case -> where its file belongs, and the error; all at once, as pypdl takes a second each."""

    def run(name: str) -> tuple[Path, str]:
        target = tmp_path_factory.mktemp("case") / "a.bin"
        with serve(*(FAULTS.get(name) or [FINAL[name][0]])) as server:
            try:
                if name in FAULTS:
                    fetch(server, target)  # no checksum is known, so nothing but care helps
                else:
                    fetch(server, target, patience=Patience(tries=2, wait=0.01, stall=10))
            except DownloadError as error:
                return target, str(error)
        return target, ""

    names = [*FAULTS, *FINAL]
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_the_file_ends_whole(name: str, outcomes: dict[str, tuple[Path, str]]) -> None:
    target, error = outcomes[name]
    assert error == ""
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", FINAL)
def test_what_cannot_be_had_is_refused_and_gets_no_name(
    name: str, outcomes: dict[str, tuple[Path, str]]
) -> None:
    target, error = outcomes[name]
    assert re.search(FINAL[name][1], error)
    assert not target.exists()


def test_a_fault_that_stays_is_not_tried_again(target: Path) -> None:
    with serve(Fault(status=404, forever=True)) as server:
        with pytest.raises(DownloadError):
            fetch(server, target)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("known", "match"),
    [
        ({"size": 999_999}, "1,000,000 bytes, but 999,999 are known"),
        ({"checksum": "sha256:" + "0" * 64}, f"its sha256 is {SHA256}, not 000"),
        ({"checksum": "md5:" + "0" * 32}, "its md5 is"),
    ],
)
def test_another_file_than_the_known_one_is_refused(
    known: dict[str, object], match: str, target: Path
) -> None:
    with serve() as server, pytest.raises(DownloadError, match=match):
        fetch(server, target, patience=Patience(tries=1), **known)
    assert not target.exists()


def test_only_what_is_missing_is_fetched_again(target: Path) -> None:
    with serve(ASK, ASK, *[Fault(drop_after=100_000, pause=0.1)] * 4) as server:
        with pytest.raises(DownloadError, match="bytes are kept for when it is run again"):
            fetch(server, target, patience=Patience(tries=0, wait=0.01))
        kept, before = held(target), len(server.requests)
        assert 0 < kept <= 400_000
        server.faults.clear()
        fetch(server, target)
        spans = [request[2] for request in server.requests[before:] if request[0] == "GET"]
        first_and_last = [span.removeprefix("bytes=").split("-") for span in spans if span]
        sizes = [int(last) - int(first) + 1 for first, last in first_and_last]
        assert sum(size for size in sizes if size > 1) == len(DATA) - kept
    assert target.read_bytes() == DATA


def test_parts_of_an_older_version_are_dropped(target: Path) -> None:
    with serve(ASK, ASK, *[Fault(drop_after=100_000)] * 4) as server:
        with pytest.raises(DownloadError):
            fetch(server, target, patience=Patience(tries=0, wait=0.01))
        server.files["/a.bin"] = OTHER
        fetch(server, target)
    assert target.read_bytes() == OTHER


def test_a_killed_download_goes_on_from_its_parts(target: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_prep.download import download;"
        "download(sys.argv[1], Path(sys.argv[2]), parts=4)"
    )
    with serve(ASK, ASK, *[Fault(pause=0.2)] * 4) as server:
        child = subprocess.Popen([sys.executable, "-c", code, server.url("/a.bin"), str(target)])
        deadline = time.monotonic() + 60
        while held(target) < 200_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kept = held(target)
        assert 200_000 <= kept < len(DATA)
        before = len(server.requests)
        fetch(server, target)
        assert f"bytes=0-{len(DATA) // 4 - 1}" not in {
            span for *_, span in server.requests[before:]
        }
    assert target.read_bytes() == DATA


def test_a_table_of_parts_cut_short_is_dropped_with_its_parts(target: Path) -> None:
    with serve(ASK, ASK, *[Fault(drop_after=100_000)] * 4) as server:
        with pytest.raises(DownloadError):
            fetch(server, target, patience=Patience(tries=0, wait=0.01))
        target.with_name("a.bin.part.json").write_text('{"url": "h')
        fetch(server, target)
    assert target.read_bytes() == DATA


def test_patience_begins_anew_with_every_byte_and_waits_longer_without() -> None:
    bytes_there = iter([0, 10, 10, 20, 20, 20, 20])
    tries = []

    def attempt() -> None:
        tries.append(time.monotonic())
        raise DownloadError("broken", passing=True)

    with pytest.raises(DownloadError, match=r"broken \(20 bytes are kept"):
        persist(attempt, lambda: next(bytes_there), Patience(tries=2, wait=0.02))
    waits = [later - sooner for sooner, later in itertools.pairwise(tries)]
    assert len(tries) == 5  # 10: more, 10: one failure, 20: more, 20: one failure, 20: two
    for waited, least in zip(waits, [0.02, 0.04, 0.02, 0.04], strict=True):
        assert waited >= least


def test_digests_are_those_of_hashlib(target: Path) -> None:
    target.write_bytes(DATA)
    assert digests(target) == (SHA256, hashlib.md5(DATA).hexdigest())
