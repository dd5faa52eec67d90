"""Groups of equal things against plain loops."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from data_prep.checking.compare import ONE, compare, groups_of
from data_prep.checking.findings import ChunkFindings, PictureFinding, RowFinding, digest_of


def loop_groups(keys, kept):
    places = defaultdict(list)
    for place, (key, is_kept) in enumerate(zip(keys, kept, strict=True)):
        if is_kept:
            places[key].append(place)
    return [group for group in places.values() if len(group) > 1]


@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_loop_in_order_of_their_first(size, seed):
    draw = random.Random(seed)
    # Digests that end in zero bytes, which numpy's byte strings leave out when they are shown.
    keys = [bytes([draw.randrange(9)]) + bytes(15) for _ in range(size)]
    kept = [draw.random() < 0.8 for _ in range(size)]
    groups = groups_of(np.frombuffer(b"".join(keys), ONE), np.array(kept, dtype=bool))
    expected = loop_groups(keys, kept)
    assert list(groups) == expected
    firsts = {place: group[0] for group in expected for place in group}
    assert groups.firsts(size).tolist() == [firsts.get(place, -1) for place in range(size)]


def made_up(seed, num_rows=200):
    """Chunks of rows that often share ids, turns and pictures, and pictures that share bytes."""
    draw = random.Random(seed)
    content = {f"{n}.jpg": digest_of(f"bytes {draw.randrange(20)}") for n in range(40)}
    rows = []
    for number in range(num_rows):
        name = draw.choice(["", *"abcdefghijkl"])
        files = draw.sample(sorted(content), draw.randrange(3))
        turns = digest_of(f"turns {draw.randrange(2)}")
        row_id = digest_of(name) if name else ""
        rows.append(RowFinding(number, name, row_id, "vg", turns, files))
    seen: set[str] = set()
    chunks = []
    for first in range(0, num_rows, 16):
        chunk = rows[first : first + 16]
        new = [file for row in chunk for file in row.files if file not in seen]
        new = list(dict.fromkeys(new))
        seen.update(new)
        chunks.append(ChunkFindings(chunk, [PictureFinding(f, content[f]) for f in new], {}))
    return chunks, rows, content


@pytest.mark.parametrize("seed", range(5))
def test_what_is_there_twice_is_what_a_loop_finds(seed):
    chunks, rows, content = made_up(seed)
    doubles = compare(chunks)
    contents = [(row.turns, *(content[file] for file in row.files)) for row in rows]
    seen: dict[object, int] = {}
    repeated = []
    for row, held in zip(rows, contents, strict=True):
        first = seen.setdefault((row.id, held), row.number) if row.id else row.number
        repeated.append(first if first < row.number else -1)
    assert max(repeated) >= 0
    assert doubles.repeated.tolist() == repeated
    new = [first < 0 for first in repeated]
    named = [is_new and bool(row.id) for is_new, row in zip(new, rows, strict=True)]
    assert list(doubles.same_id) == loop_groups([row.id for row in rows], named)
    assert list(doubles.same_content) == loop_groups(contents, new)
    files = [picture.digest for chunk in chunks for picture in chunk.pictures]
    assert list(doubles.same_picture) == loop_groups(files, [True] * len(files))
    assert doubles.num_pictures == len(files)


def test_the_order_of_pictures_is_part_of_a_row():
    pictures = [PictureFinding(f, digest_of(f)) for f in ("a.jpg", "b.jpg")]
    rows = [
        RowFinding(0, "x", digest_of("x"), "vg", digest_of("t"), ["a.jpg", "b.jpg"]),
        RowFinding(1, "x", digest_of("x"), "vg", digest_of("t"), ["b.jpg", "a.jpg"]),
    ]
    doubles = compare([ChunkFindings(rows, pictures, {})])
    assert doubles.repeated.tolist() == [-1, -1]
    assert list(doubles.same_id) == [[0, 1]]
