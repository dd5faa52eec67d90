import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from llava_compete.data import (
    IGNORED,
    Collator,
    LlavaDataset,
    encode,
    to_messages,
)
from tests import tiny
from tests.tiny import say


def write(tmp_path, processor, *rows, max_length=None):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(rows))
    return LlavaDataset(file, tmp_path, processor, max_length)


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


def test_a_picture_asked_for_in_an_answer_is_refused_by_sample(tmp_path, processor):
    tiny.draw(0).save(tmp_path / "0.png")
    dataset = write(tmp_path, processor, say("a", "<image>b", image="0.png"))
    with pytest.raises(ValueError, match="sample row-7: turn 2: <image> in the answer"):
        dataset[0]


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
    dataset = write(tmp_path, processor, row, max_length=max_length)
    with pytest.raises(
        ValueError,
        match=f"sample row-7 of .*: the first turn needs {len(first['input_ids'])} tokens, 4 of "
        f"them image tokens, but max_length={max_length} would cut an image or leave no answer",
    ):
        dataset[0]


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


def test_a_dataset_can_be_pickled(dataset):
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(copied) == len(dataset)
    for name, value in dataset[2].items():
        assert torch.equal(copied[2][name], value)
