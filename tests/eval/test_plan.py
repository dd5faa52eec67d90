import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from eval.plan import RIGHT, SHUFFLED, plan, shuffle_pictures
from eval.task import Sample, load_task


def samples_of(counts):
    """Samples that show picture i counts[i] times, in mixed order."""
    pictures = [i for i, count in enumerate(counts) for _ in range(count)]
    random.Random(1).shuffle(pictures)
    return [Sample(str(n), "?", ("a",), (Path(f"{i}.png"),)) for n, i in enumerate(pictures)]


def digests_of(samples):
    return {image: f"digest {image}" for sample in samples for image in sample.images}


@pytest.mark.parametrize(
    "counts", [[1, 1], [2, 2, 2, 2], [1, 2, 3, 6], [5, 1, 1, 1, 1, 1], [1] * 9]
)
@pytest.mark.parametrize("seed", range(5))
def test_no_sample_is_shown_its_own_picture_and_the_pictures_are_permuted(counts, seed):
    samples = samples_of(counts)
    shuffled = shuffle_pictures(samples, digests_of(samples), seed)
    assert [sample.id for sample in shuffled] == [sample.id for sample in samples]
    assert all(new.images != old.images for new, old in zip(shuffled, samples, strict=True))
    assert Counter(s.images for s in shuffled) == Counter(s.images for s in samples)


def test_two_files_with_the_same_picture_are_one_picture():
    samples = samples_of([1, 1, 1, 1])
    digests = dict(zip(sorted(s.images[0] for s in samples), "xxyy", strict=True))
    for seed in range(10):
        for new, old in zip(shuffle_pictures(samples, digests, seed), samples, strict=True):
            assert digests[new.images[0]] != digests[old.images[0]]


def test_the_pictures_of_a_sample_stay_together():
    shown = [("a", "b"), ("b", "a"), ("a",), ("c", "c")]
    samples = [
        Sample(str(n), "?", ("a",), tuple(Path(f"{name}.png") for name in names))
        for n, names in enumerate(shown)
    ]
    shuffled = shuffle_pictures(samples, digests_of(samples), 0)
    assert Counter(s.images for s in shuffled) == Counter(s.images for s in samples)
    assert all(new.images != old.images for new, old in zip(shuffled, samples, strict=True))


def test_the_seed_decides_the_shuffle():
    samples = samples_of([1] * 12)
    digests = digests_of(samples)
    assert shuffle_pictures(samples, digests, 3) == shuffle_pictures(samples, digests, 3)
    assert shuffle_pictures(samples, digests, 3) != shuffle_pictures(samples, digests, 4)


def test_a_picture_of_more_than_half_the_samples_cannot_be_shuffled():
    samples = samples_of([3, 1, 1])
    with pytest.raises(ValueError, match="3 of 5 samples show one and the same picture"):
        shuffle_pictures(samples, digests_of(samples), 0)


def test_samples_without_a_picture_are_asked_only_once():
    samples = [*samples_of([1, 1]), Sample("text", "?", ("a",))]
    assert [s.id for s in shuffle_pictures(samples, digests_of(samples), 0)] == ["0", "1"]


def keys(task, fingerprint="f", **more):
    given = {"shuffled_control": False} | more
    return [request.key for request in plan(task, fingerprint, **given)]


def test_a_key_changes_with_everything_the_reply_depends_on(data_root):
    task = load_task("stamps_short", data_root)
    before = keys(task)
    first = task.samples[0]
    others = [
        replace(task, name="other"),
        replace(task, version=2),
        replace(task, max_new_tokens=3),
        replace(task, samples=(replace(first, prompt="!"), *task.samples[1:])),
        replace(task, samples=(replace(first, id="!"), *task.samples[1:])),
        replace(task, samples=(replace(first, images=()), *task.samples[1:])),
        replace(task, samples=(replace(first, images=first.images * 2), *task.samples[1:])),
    ]
    assert all(keys(other)[0] != before[0] for other in others)
    assert keys(task, "g")[0] != before[0]
    assert keys(task) == before
    (picture,) = first.images
    picture.write_bytes(picture.read_bytes() + b"!")
    assert keys(task)[0] != before[0]


def test_a_key_knows_pictures_by_content_not_by_place(data_root, tmp_path):
    task = load_task("stamps_yesno", data_root)
    before = keys(task, shuffled_control=True)
    moved = data_root.rename(tmp_path / "moved")
    assert keys(load_task("stamps_yesno", moved), shuffled_control=True) == before


def test_a_loss_is_asked_for_in_its_groups_only(data_root):
    requests = plan(load_task("stamps_short", data_root), "f", shuffled_control=True)
    losses = [request for request in requests if request.wants == "loss"]
    assert Counter(request.condition for request in losses) == {RIGHT: 4, SHUFFLED: 4}
    assert {request.sample.group for request in losses} == {"name"}
    assert len({request.key for request in requests}) == len(requests)


def test_a_limited_run_is_a_part_of_the_whole_one(data_root):
    task = load_task("stamps_short", data_root)
    whole = keys(task, shuffled_control=True)
    part = plan(task, "f", shuffled_control=True, limit=3)
    assert [key for key in whole if key in {r.key for r in part}] == [r.key for r in part]
    for condition in (RIGHT, SHUFFLED):
        of_it = [r for r in part if r.condition == condition and r.wants == "answer"]
        assert len(of_it) == 3
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        keys(task, limit=0)


def test_a_task_that_cannot_be_shuffled_is_named(data_root):
    task = load_task("stamps_yesno", data_root)
    (picture,) = task.samples[0].images
    same = tuple(replace(sample, images=(picture,)) for sample in task.samples)
    with pytest.raises(ValueError, match="stamps_yesno: 8 of 8 samples show one and the same"):
        plan(replace(task, samples=same), "f", shuffled_control=True)
