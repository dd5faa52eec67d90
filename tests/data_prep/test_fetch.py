"""`python -m data_prep fetch` from its command line to the files, against a local server."""

import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data_prep import fetch
from data_prep.download import Patience
from data_prep.sources import ByHand, DataSet, Hub, Source, Web
from tests.data_prep.faulty_server import Fault, FaultyServer

NOISE = random.Random(0).randbytes(600_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/pictures"
QUICK = Patience(tries=12, wait=0.01, longest_wait=0.05, stall=10)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PART1 = {"VG_100K/1.jpg": NOISE[:200_000], "VG_100K/2.jpg": NOISE[200_000:300_000]}
PART2 = {"VG_100K_2/3.jpg": NOISE[300_000:400_000]}
CHUNK = {"deep/in/4.jpg": NOISE[400_000:500_000]}
ROWS = b'[{"id": "1"}]'
PLACED = {
    "rows.json": ROWS,
    "allava/images/4.jpg": CHUNK["deep/in/4.jpg"],
    **{f"vg/{name}": content for name, content in (PART1 | PART2).items()},
}
ARCHIVES = {"/images.zip": zipped(PART1), "/images2.zip": zipped(PART2)}
HUB_FILES = {"rows.json": ROWS, "chunks/images_0.zip": zipped(CHUNK), "other.json": b"{}"}
ROWS_SHA1 = hashlib.sha1(b"blob %d\0" % len(ROWS) + ROWS).hexdigest()  # git's, of a small file


def hub_pages() -> dict[str, bytes]:
    """What a hub answers of REPO: its listing, its tree and its files."""
    sizes = {name: len(content) for name, content in HUB_FILES.items()}
    large = {
        name: {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        for name, content in HUB_FILES.items()
        if name.endswith(".zip")
    }
    siblings = [
        {"rfilename": name, "size": size, "blobId": ROWS_SHA1}
        | ({"lfs": large[name] | {"sha256": large[name]["oid"]}} if name in large else {})
        for name, size in sizes.items()
    ]
    tree = [
        {"type": "file", "oid": ROWS_SHA1, "path": name, "size": size}
        | ({"lfs": large[name]} if name in large else {})
        for name, size in sizes.items()
    ]
    listing = json.dumps({"id": REPO, "sha": COMMIT, "private": False, "siblings": siblings})
    return {
        f"/api/datasets/{REPO}/revision/main": listing.encode(),
        f"/api/datasets/{REPO}/revision/{COMMIT}": listing.encode(),
        f"/api/datasets/{REPO}/tree/{COMMIT}": json.dumps(tree).encode(),
        **{resolve(name): content for name, content in HUB_FILES.items()},
    }


def resolve(name: str) -> str:
    return f"/datasets/{REPO}/resolve/{COMMIT}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is local
    with FaultyServer(ARCHIVES | hub_pages()) as server:
        for name, content in HUB_FILES.items():
            server.headers[resolve(name)] = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{sha256(content)}"',
            }
        yield server


def sources(server: FaultyServer) -> tuple[Source, ...]:
    def web(name: str, path: str) -> Source:
        size = len(ARCHIVES[path])
        return Source(
            name=name,
            get=Web(url=server.url(path), size=size),
            licence="CC BY 4.0",
            into="vg",
            unpack=True,
            download=size,
        )

    def hub(name: str, *files: str, **options: Any) -> Source:
        get = Hub(repo=REPO, files=files, endpoint=server.base)
        return Source(name=name, get=get, licence="none", download=100_000, **options)

    return (
        hub("annotation", "rows.json"),
        hub("chunk", "*/images_0.zip", into="allava/images", unpack=True, flatten=True),
        web("part1", "/images.zip"),
        web("part2", "/images2.zip"),
    )


def run(server: FaultyServer, root: Path, *words: str, of: Sequence[Source] | None = None) -> int:
    """Exit code of `fetch test --root ROOT WORDS`."""
    sets = {"test": DataSet("a test", "data/test", tuple(of or sources(server)))}
    try:
        fetch.main(["test", "--root", str(root), *words], sets, QUICK)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def placed(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` but fetch's own."""
    files = (path for path in root.rglob("*") if path.is_file())
    names = {str(path.relative_to(root)): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if ".fetch" not in name}


def receipt(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / f".fetch/test.{name}.json").read_text())


def test_every_source_ends_whole_and_a_second_run_asks_nobody(
    server: FaultyServer, tmp_path: Path
) -> None:
    root = tmp_path / "new" / "root"
    assert run(server, root) == 0
    assert placed(root) == PLACED
    assert {path.suffix for path in (root / ".fetch").iterdir()} == {".json", ".lock"}
    said = receipt(root, "part1")
    assert said["origin"] == server.url("/images.zip")
    assert said["num_files"] == 2
    assert said["files"] == {"vg/VG_100K/1.jpg": 200_000, "vg/VG_100K/2.jpg": 100_000}
    archive = ARCHIVES["/images.zip"]
    assert said["downloads"] == {"images.zip": {"size": len(archive), "sha256": sha256(archive)}}
    assert receipt(root, "annotation")["origin"] == f"hub data set {REPO} at {COMMIT}"
    server.requests.clear()
    assert run(server, root) == 0
    assert server.requests == []
    assert placed(root) == PLACED


FAULTS = {
    "drops": [Fault(), Fault(), *[Fault(drop_after=20_000)] * 8],
    "lies": [Fault(), Fault(), *[Fault(claim_more=500)] * 8],
    "whole": [Fault(ignore_range=True, forever=True)],
    "etags": [Fault(fickle_etag=True, forever=True)],
    "503": [Fault(status=503)],
}


def test_archives_of_a_faulty_server_end_whole(server: FaultyServer, tmp_path: Path) -> None:
    def one(name: str) -> int:
        path = f"/{name}.zip"
        server.files[path], server.faults[path] = ARCHIVES["/images.zip"], list(FAULTS[name])
        source = replace(sources(server)[2], get=Web(url=server.url(path)))
        return run(server, tmp_path / name, of=[source])

    with ThreadPoolExecutor(len(FAULTS)) as pool:  # pypdl takes a second or more for each
        codes = dict(zip(FAULTS, pool.map(one, FAULTS), strict=True))
    assert codes == dict.fromkeys(FAULTS, 0)
    for name in FAULTS:
        assert placed(tmp_path / name) == {f"vg/{file}": held for file, held in PART1.items()}


HUB_FAULTS = {
    "drops": [Fault(drop_after=30_000), Fault(drop_after=30_000)],
    "503": [Fault(status=503)],
    "cut": [Fault(body=NOISE[:1000])],
    "other content": [Fault(body=NOISE[: len(HUB_FILES["chunks/images_0.zip"])])],
}


@pytest.mark.parametrize("fault", HUB_FAULTS)
def test_files_of_a_faulty_hub_end_whole(fault: str, server: FaultyServer, tmp_path: Path) -> None:
    server.faults[resolve("chunks/images_0.zip")] = list(HUB_FAULTS[fault])
    assert run(server, tmp_path, "--only", "chunk") == 0
    assert placed(tmp_path) == {"allava/images/4.jpg": CHUNK["deep/in/4.jpg"]}


def test_a_small_file_of_the_hub_is_held_to_gits_digest(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults[resolve("rows.json")] = [Fault(body=b"[{'id': '2'}]")]
    assert run(server, tmp_path, "--only", "annotation") == 0
    assert "rows.json: it is not the file that the hub lists; trying again" in caplog.text
    assert placed(tmp_path) == {"rows.json": ROWS}


def test_a_bad_archive_is_refused_and_removed_and_the_others_are_fetched(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = server.files["/images.zip"]
    server.files["/images.zip"] = good[:-100] + bytes(100)
    caplog.set_level("INFO")
    few = ("--only", "part1", "annotation")
    assert run(server, tmp_path, *few) == 1
    assert re.search(r"part1: images.zip is no zip.*it is removed: run this again", caplog.text)
    assert caplog.text.endswith("not there: part1\n")
    assert set(placed(tmp_path)) == {"rows.json"}
    server.files["/images.zip"] = good
    assert run(server, tmp_path, *few) == 0
    assert set(placed(tmp_path)) == {"rows.json", *(f"vg/{name}" for name in PART1)}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"VG_100K/1.jpg": b"1", "../../escaped.txt": b"2"}, "leads out of the folder"),
        ({"VG_100K/1.jpg": bytes(3_000_000)}, "declare 3,000,000 bytes"),
    ],
    ids=["path out of the root", "bomb"],
)
def test_an_archive_with_evil_in_it_leaves_nothing(
    files: dict[str, bytes],
    match: str,
    server: FaultyServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.files["/evil.zip"] = zipped(files)
    evil = replace(sources(server)[2], get=Web(url=server.url("/evil.zip")))
    assert run(server, tmp_path / "root", of=[evil]) == 1
    assert match in caplog.text
    assert placed(tmp_path) == {}


def test_a_page_in_place_of_an_archive_is_refused(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files["/images.zip"] = b"<html>too many downloads</html>"
    server.headers["/images.zip"] = {"Content-Type": "text/html; charset=utf-8"}
    assert run(server, tmp_path, "--only", "part1") == 1
    assert "a web page came in place of the file" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "cut", "folder gone"])
def test_a_damaged_source_is_made_whole_again(
    damage: str, server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(server, tmp_path, "--only", "part1", "annotation") == 0
    whole = placed(tmp_path)
    victim = tmp_path / "vg/VG_100K/2.jpg"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "missing":
        victim.unlink()
    else:
        shutil.rmtree(tmp_path / "vg")
    server.requests.clear()
    caplog.set_level("INFO")
    assert run(server, tmp_path, "--only", "part1", "annotation") == 0
    assert "part1: damaged" in caplog.text
    assert "annotation: there, 1 files" in caplog.text
    assert placed(tmp_path) == whole
    assert {path for _, path, _ in server.requests} == {"/images.zip"}


def test_a_picture_that_check_has_repaired_is_no_damage(
    server: FaultyServer, tmp_path: Path
) -> None:
    assert run(server, tmp_path, "--only", "part2") == 0
    picture = tmp_path / "vg/VG_100K_2/3.jpg"
    picture.rename(picture.with_suffix(".gif"))
    picture.write_bytes(b"a JPEG made of it")
    server.requests.clear()
    assert run(server, tmp_path, "--only", "part2") == 0
    assert server.requests == []


def test_kept_archives_serve_a_repair_without_the_net(server: FaultyServer, tmp_path: Path) -> None:
    assert run(server, tmp_path, "--only", "part1", "--keep_archives") == 0
    archive = tmp_path / ".fetch/test.part1/files/images.zip"
    assert archive.read_bytes() == ARCHIVES["/images.zip"]
    (tmp_path / "vg/VG_100K/1.jpg").unlink()
    server.requests.clear()
    assert run(server, tmp_path, "--only", "part1", "--keep_archives") == 0
    assert server.requests == []
    archive.write_bytes(bytes(archive.stat().st_size))
    (tmp_path / "vg/VG_100K/1.jpg").unlink()
    assert run(server, tmp_path, "--only", "part1") == 0
    assert server.requests != []
    assert placed(tmp_path) == {f"vg/{name}": content for name, content in PART1.items()}
    assert not archive.exists()


def test_a_disk_too_small_is_refused_before_the_first_byte(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    big = [replace(source, installed=10**16) for source in sources(server)]
    assert run(server, tmp_path, of=big) == 1
    assert re.search(r"4000000\d\.\d GB are needed and \d+\.\d GB are free", caplog.text)
    assert server.requests == []
    assert placed(tmp_path) == {}


def test_dry_run_shows_sizes_places_licences_and_asks_nobody(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, tmp_path, "--only", "part2") == 0
    server.requests.clear()
    assert run(server, tmp_path, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert server.requests == []
    for words in (
        "part1: absent",
        "part2: there, 1 files",
        server.url("/images.zip"),
        str(tmp_path / "vg"),
        "0.3 MB to download, 0.3 MB on disk",
        "CC BY 4.0",
        f"hub data set {REPO} (main): rows.json",
        "1 of 4 there; the others need",
        "are free",
    ):
        assert words in shown


def test_a_file_to_get_by_hand_says_how_and_is_unpacked_once_it_is_there(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hand = Source(
        name="eval_zip",
        get=ByHand(url="https://drive.example/1", file="eval.zip", steps="open it in a browser"),
        licence="none",
        unpack=True,
        installed=1000,
    )
    assert run(server, tmp_path, of=[hand]) == 1
    assert "open it in a browser, https://drive.example/1; put it at" in caplog.text
    (tmp_path / "eval.zip").write_bytes(zipped({"pope/questions.jsonl": b"{}"}))
    assert run(server, tmp_path, of=[hand]) == 0
    assert (tmp_path / "pope/questions.jsonl").read_bytes() == b"{}"


def test_two_fetches_of_one_source_do_not_mix(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".fetch").mkdir()
    with FileLock(tmp_path / ".fetch/test.part1.lock"):
        assert run(server, tmp_path, "--only", "part1") == 1
    assert "another fetch is at work" in caplog.text
    assert server.requests == []


def test_a_pattern_without_a_file_names_what_the_hub_has(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get = Hub(repo=REPO, files=("*.parquet",), endpoint=server.base)
    assert run(server, tmp_path, of=[replace(sources(server)[0], get=get)]) == 1
    assert f"{REPO} has no file *.parquet; it has rows.json, chunks/images_0.zip" in caplog.text


def test_a_hub_that_lacks_the_data_set_is_asked_once(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get = Hub(repo="someone/nothing", files=("*",), endpoint=server.base)
    assert run(server, tmp_path, of=[replace(sources(server)[0], get=get)]) == 1
    assert "someone/nothing" in caplog.text


@pytest.mark.parametrize(
    "words", [[], ["test"], ["nothing", "--root", "x"], ["test", "--root", "x", "--only", "part9"]]
)
def test_wrong_words_end_with_2(words: list[str], server: FaultyServer) -> None:
    with pytest.raises(SystemExit) as end:
        fetch.main(words, {"test": DataSet("a test", "data/test", sources(server))})
    assert end.value.code == 2


def test_the_real_sets_are_listed_and_planned_offline(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "fetch"]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True).stdout
    for name, data_set in fetch.SETS.items():
        assert f"{name}: " in listed
        assert all(source.name in listed for source in data_set.sources)
    plan = [*command, "llava_mix665k", "--root", str(tmp_path), "--dry_run"]
    shown = subprocess.run(plan, capture_output=True, text=True, check=True).stdout
    assert "http://images.cocodataset.org/zips/train2017.zip" in shown
    assert str(tmp_path / "coco") in shown


@pytest.mark.parametrize("name", fetch.SETS)
def test_the_tables_are_sound(name: str) -> None:
    sources = fetch.SETS[name].sources
    assert len({source.name for source in sources}) == len(sources)
    readme = Path("data_prep/README.md").read_text()
    for source in sources:
        assert source.licence
        assert source.unpack <= (source.on_disk() is not None)  # the bound on an archive needs it
        assert (
            f"`{source.name}`" in readme or f"`{re.sub(r'_[0-9]$', '_0', source.name)}`" in readme
        )
        if isinstance(source.get, Web) and source.get.checksum:
            kind, digits = source.get.checksum.split(":")
            assert len(digits) == {"md5": 32, "sha256": 64}[kind]
