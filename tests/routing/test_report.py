"""The verb: two files, whole and self-contained, or one clear error."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava_compete.__main__ import main
from tests import tiny


@pytest.fixture(scope="module")
def written(tmp_path_factory, checkpoints) -> Path:
    """The output of the verb, with the checkpoint itself as the other."""
    root = tmp_path_factory.mktemp("routing")
    rows, images = tiny.write_rows(root, n=6, text_only=(1,))
    main(
        [
            *("routing", str(checkpoints["moe"]), str(rows), "--image_folder", str(images)),
            *("--output", str(root / "out"), "--other", str(checkpoints["moe"]), "--rows", "5"),
        ]
    )
    return root / "out"


def test_both_files_are_there_and_nothing_else(written):
    assert sorted(file.name for file in written.iterdir()) == ["routing.html", "routing.json"]


def test_the_json_has_every_figure_of_every_layer(written):
    found = json.loads((written / "routing.json").read_text())
    assert (found["rows"], found["rows_of_data"]) == (5, 6)
    assert set(found["answer_loss"]) == {"tokens", "value", "drop_top1", "drop_top1_change"}
    assert {part: len(found["parts"][part]["layers"]) for part in found["parts"]} == {
        "language_model": 2,
        "projector": 1,
    }
    figures = {
        *("tokens", "load", "entropy", "experts_per_token", "margin", "relative_margin"),
        *("agreement", "agreement_shuffled", "chance", "drop_top1", "changed"),
        *("coactivation", "similarity"),
    }
    for part, kinds in (
        ("language_model", ["image", "text", "answer", "all"]),
        ("projector", ["image", "all"]),
    ):
        for layer in found["parts"][part]["layers"]:
            assert list(layer["kinds"]) == kinds
            for values in layer["kinds"].values():
                assert set(values) == figures
                assert None not in values.values()
                assert values["changed"] == 0
            assert len(layer["patches"]) == 4
            assert len(layer["words"]) == (4 if part == "language_model" else 0)


class Sources(HTMLParser):
    """Everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset")]


def test_the_page_needs_nothing_but_itself(written):
    page = (written / "routing.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) > 10
    assert all(source.startswith("data:image/") for source in sources.found)
    assert not sources.tags & {"script", "link", "iframe"}
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_shows_every_part(written):
    page = re.sub(r"data:image/[^\"]*", "", (written / "routing.html").read_text())
    for heading in ("Who takes how much", "How the routers decide", "What each expert takes most"):
        assert heading in page
    for name in ("Language model, layer 0", "Language model, layer 1", "Projector, layer 0"):
        assert name in page
    assert page.count("expert 3</b>") == 3


def words(tmp_path, checkpoint, **changes):
    rows, images = tiny.write_rows(tmp_path, n=2)
    given = {"--image_folder": images, "--output": tmp_path / "out", **changes}
    data = given.pop("data", rows)
    options = [str(word) for pair in given.items() for word in pair]
    return ["routing", str(checkpoint), str(data), *options]


def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, checkpoints):
    (tmp_path / "none.json").write_text("[]")
    eight = tiny.make_checkpoint(tmp_path / "eight", num_experts=8)
    for changes, message in (
        ({"data": tmp_path / "none.json"}, "holds no rows"),
        ({"data": tmp_path / "no.json"}, "data file .*no.json does not exist"),
        ({"--image_folder": tmp_path}, "sample row-0.*image .* does not exist"),
        ({"--other": checkpoints["dense"]}, "checkpoint .*dense is dense"),
        ({"--other": eight}, "experts cannot be compared"),
        ({"--rows": 0}, "rows=0 must be at least 1"),
        ({"--batch_size": 0}, "batch_size=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(words(tmp_path, checkpoints["moe"], **changes))
        assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"checkpoint .*dense is dense"):
        main(words(tmp_path, checkpoints["dense"]))


def test_a_directory_that_holds_something_is_left_alone(tmp_path, checkpoints):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exists and is not empty"):
        main(words(tmp_path, checkpoints["moe"]))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
