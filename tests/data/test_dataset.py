import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from llava_compete.data import (
    IGNORED,
    Collator,
    ImageFolder,
    LlavaDataset,
    to_messages,
)
from llava_compete.data.encode import encode
from tests import tiny
from tests.tiny import say


def write(tmp_path, processor, *rows, max_length=None, **options):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(rows))
    return LlavaDataset(file, tmp_path, processor, max_length, **options)


def test_a_row_without_id_is_named_by_its_number(tmp_path, processor):
    row = say("<image>", "b", image="gone.png")
    del row["id"]
    dataset = write(tmp_path, processor, say("a", "b"), row)
    with pytest.raises(ValueError, match=r"sample number 1: image .*gone.png does not exist"):
        dataset[1]


def test_a_file_without_rows_is_refused(tmp_path, processor):
    with pytest.raises(ValueError, match="holds no rows"):
        write(tmp_path, processor)


def test_the_dataset_returns_each_row_as_it_stands(tmp_path, processor):
    rows = [say("Ä ☃", "é", id=f"r{i}") for i in range(4)]
    dataset = write(tmp_path, processor, *rows)
    assert len(dataset) == 4
    assert [dataset.row(i) for i in (3, 0, 2, 1)] == [rows[i] for i in (3, 0, 2, 1)]


def test_text_only_rows_have_no_pixels_and_others_one_picture_each(dataset):
    samples = [dataset[i] for i in range(5)]
    assert ["pixel_values" in sample for sample in samples] == [True, False, True, True, True]
    for sample in samples:
        assert sample["input_ids"].shape == sample["labels"].shape
        kept = sample["labels"] != IGNORED
        assert kept.any()
        assert torch.equal(sample["labels"][kept], sample["input_ids"][kept])


def test_several_images_come_in_the_order_of_the_row(tmp_path, processor):
    for index in range(2):
        tiny.draw(index).save(tmp_path / f"{index}.png")
    both = write(tmp_path, processor, say("<image><image>?", "x", image=["1.png", "0.png"]))[0]
    alone = [
        write(tmp_path, processor, say("<image>?", "x", image=f"{i}.png"))[0]["pixel_values"]
        for i in (1, 0)
    ]
    assert torch.equal(both["pixel_values"], torch.cat(alone))


@pytest.mark.parametrize("left", ["half an image", "no answer"])
def test_a_first_turn_cut_inside_an_image_or_before_its_answer_is_refused_by_sample(
    tmp_path, processor, left
):
    tiny.draw(0).save(tmp_path / "0.png")
    row = say("<image>a", "b", "c", "d", image="0.png")
    first = encode(processor, to_messages(row)[:2], [tiny.draw(0)])
    images = (first["input_ids"] == processor.image_token_id).nonzero()
    answers = (first["labels"] != IGNORED).nonzero()
    max_length = int(images[1] if left == "half an image" else answers[0])
    fault = (
        f"sample row-7: the first turn needs {len(first['input_ids'])} tokens, 4 of them image "
        f"tokens, but max_length={max_length} would cut an image or leave no answer"
    )
    with pytest.raises(ValueError, match=f"no row is left.*{fault}"):
        write(tmp_path, processor, row, max_length=max_length)


def test_rows_of_which_nothing_is_left_are_refused_together_or_left_out_and_counted(
    tmp_path, processor
):
    """An exchange without picture has 23 tokens, one with a picture 28."""
    long = [say("<image>a", "b", id=f"long {i}", image="coco/a.png") for i in range(7)]
    rows = [long[0], say("a", "b", id="short"), *long[1:], say("<image>", "b", id="x", image="a")]
    with pytest.raises(ValueError, match=r"8 of 9 rows of .* are too long") as said:
        write(tmp_path, processor, *rows, max_length=23)
    assert [f"sample long {i}: the first turn" in str(said.value) for i in range(6)] == [
        *[True] * 5,
        False,
    ]
    dataset = write(tmp_path, processor, *rows, max_length=23, broken_images="skip")
    assert len(dataset) == 1
    assert dataset.row(0) == rows[1]
    counts = dataset.table.summary()
    assert {source: count.refused for source, count in counts.items()} == {
        "text": 0,
        "coco": 7,
        "images": 1,
    }
    assert len(dataset[0]["input_ids"]) == 23


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (say("<image>a", "b", image="gone.png"), "sample row-7: image .*gone.png does not exist"),
        (say("<image>a", "b", image="../0.png"), "sample row-7: image .* lies outside"),
        (say("a", "b", "c"), "sample row-7: human and gpt must alternate"),
    ],
)
def test_check_names_the_row_that_cannot_be_used_before_any_is_drawn(
    tmp_path, processor, row, message
):
    tiny.draw(0).save(tmp_path / "0.png")
    good = say("<image>a", "b", image="0.png")
    write(tmp_path, processor, good).check()
    with pytest.raises(ValueError, match=message):
        write(tmp_path, processor, good, row).check()


def test_two_loader_workers_give_what_one_process_gives(dataset, processor):
    collator = Collator(processor)
    loaded = list(DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collator))
    wanted = [collator([dataset[i] for i in range(n, min(n + 2, 5))]) for n in (0, 2, 4)]
    assert len(loaded) == 3
    for batch, reference in zip(loaded, wanted, strict=True):
        assert set(batch) == set(reference)
        for name in batch:
            assert torch.equal(batch[name], reference[name])


def assert_same(sample, expected):
    assert sample.pop("image_files") == expected.pop("image_files")
    torch.testing.assert_close(sample, expected, rtol=0, atol=0)


def test_a_dataset_can_be_pickled(dataset):
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(copied) == len(dataset)
    assert_same(copied[2], dataset[2])


def test_lengths_are_those_of_the_samples_and_a_tuple_is_a_pack(dataset):
    assert dataset.lengths.tolist() == [len(dataset[i]["input_ids"]) for i in range(5)]
    pack = dataset[3, 0, 3]
    assert [
        torch.equal(row["input_ids"], dataset[i]["input_ids"])
        for row, i in zip(pack, (3, 0, 3), strict=True)
    ]
    assert torch.equal(pack[0]["pixel_values"], pack[2]["pixel_values"])


def test_a_large_picture_is_opened_at_the_side_that_is_needed(tmp_path, processor, monkeypatch):
    tiny.draw(0, (512, 512)).save(tmp_path / "0.jpg", quality=100)
    dataset = write(tmp_path, processor, say("<image>a", "b", image="0.jpg"))
    sides = []
    whole = ImageFolder.open
    monkeypatch.setattr(
        ImageFolder, "open", lambda self, f, n, side: sides.append(side) or whole(self, f, n, side)
    )
    assert dataset[0]["pixel_values"].shape == (1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    assert sides == [tiny.IMAGE_SIZE]


def test_pictures_of_turns_that_are_dropped_are_not_opened(tmp_path, processor):
    tiny.draw(0).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("no picture")
    row = say("<image>a", "b", "<image>c", "d", image=["0.png", "1.png"])
    sample = write(tmp_path, processor, row, max_length=40)[0]
    assert sample["pixel_values"].shape[0] == 1


def broken_rows(tmp_path):
    """Rows of 1 to 3 words in each answer; pictures 2 and 4 are missing and damaged."""
    rows = []
    for index, words in enumerate((3, 1, 2, 2, 3, 1)):
        image = f"{index}.png"
        tiny.draw(index).save(tmp_path / image)
        rows.append(say("<image>a", "b" * words, id=f"r{index}", image=image))
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:50])
    return rows


@pytest.mark.parametrize("index", [2, 4])
def test_a_broken_picture_ends_the_run_unless_it_is_to_be_skipped(tmp_path, processor, index):
    dataset = write(tmp_path, processor, *broken_rows(tmp_path))
    with pytest.raises(ValueError, match=rf"sample r{index}: image .*{index}.png"):
        dataset[index]


def test_the_nearest_row_that_is_no_longer_takes_the_place_of_a_broken_one(tmp_path, processor):
    dataset = write(tmp_path, processor, *broken_rows(tmp_path), broken_images="skip")
    # By length, then number: 1, 5, 2, 3, 0, 4. The place of 2 goes to 5, that of 4 to 0.
    for index, other, reason in ((2, 5, "does not exist"), (4, 0, "cannot be read")):
        sample = dataset[index]
        (record,) = sample.pop("skipped")
        assert reason in record.pop("reason")
        assert record == {"row": index, "id": f"r{index}", "replaced_by": other}
        assert dataset.lengths[other] <= dataset.lengths[index]
        assert_same(sample, dataset[other])
    assert all("skipped" not in dataset[index] for index in (0, 1, 3, 5))
    assert ["skipped" in sample for sample in dataset[0, 2, 3]] == [False, True, False]


def test_a_replacement_that_is_broken_is_replaced_and_the_shortest_by_a_longer_one(
    tmp_path, processor
):
    rows = broken_rows(tmp_path)
    for index in (1, 5):
        (tmp_path / f"{index}.png").unlink()
    dataset = write(tmp_path, processor, *rows, broken_images="skip")
    (record,) = dataset[2]["skipped"]  # 5 and 1, tried in between, are written down when drawn
    assert (record["row"], record["replaced_by"]) == (2, 3)
    assert "2.png" in record["reason"]


def test_a_folder_without_any_picture_is_refused_and_not_searched_through(tmp_path, processor):
    rows = [say("<image>a", "b", image=f"{index}.png") for index in range(150)]
    dataset = write(tmp_path, processor, *rows, broken_images="skip")
    with pytest.raises(ValueError, match=r"none of 100 rows tried .* still there\?"):
        dataset[7]


def test_check_says_how_many_images_are_missing_or_counts_them_by_source(tmp_path, processor):
    tiny.draw(0).save(tmp_path / "0.png")
    rows = [
        say("<image>a", "b", image="0.png"),
        say("<image>a", "b", id="gone", image="coco/x.png"),
        say("a", "b"),
        say("<image><image>a", "b", image=["coco/x.png", "coco/y.png"]),
        say("<image>a", "b", image="y.png"),
    ]
    with pytest.raises(ValueError, match=r"sample gone: .*x.png does not exist; 2 more rows lack"):
        write(tmp_path, processor, *rows).check()
    assert write(tmp_path, processor, *rows, broken_images="skip").check() == {
        "coco": 2,
        "images": 1,
    }
    assert not write(tmp_path, processor, rows[0], broken_images="skip").check()


def test_an_unknown_policy_is_refused_with_the_nearest(tmp_path, processor):
    with pytest.raises(ValueError, match="broken_images='skp' is not known; did you mean skip"):
        write(tmp_path, processor, say("a", "b"), broken_images="skp")


class Features:
    """Stands for a FeatureCache: the features of a file are its number."""

    def features(self, file, path):
        assert path.is_file()
        return torch.full((4, 2), float(file[0]))

    def empty(self):
        return torch.empty(0, 4, 2)


def test_cached_features_stand_for_pixels_and_no_picture_is_opened(
    tmp_path, processor, monkeypatch
):
    rows = [
        say("a", "b"),
        *broken_rows(tmp_path)[3:5],
        say("<image><image>a", "b", image=["1.png", "0.png"]),
    ]
    dataset = write(tmp_path, processor, *rows, features=Features())
    monkeypatch.setattr(ImageFolder, "open", None)
    found = [dataset[index] for index in range(4)]
    assert all("pixel_values" not in sample for sample in found)
    assert [sample["image_features"][:, 0, 0].tolist() for sample in found] == [
        [],
        [3],
        [4],
        [1, 0],
    ]
    assert found[0]["image_features"].shape == (0, 4, 2)
