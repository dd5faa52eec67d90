import pytest
import torch

from llava_compete.data import IGNORED, Collator
from llava_compete.data.collate import lay_out


def test_a_batch_is_padded_on_the_right_and_labels_only_answers(dataset, processor):
    samples = [dataset[i] for i in range(3)]
    batch = Collator(processor)(samples)
    longest = max(len(sample["input_ids"]) for sample in samples)
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert torch.equal(batch["input_ids"][row, :length], sample["input_ids"])
        assert torch.equal(batch["labels"][row, :length], sample["labels"])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
        assert (batch["input_ids"][row, length:] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][row, length:] == IGNORED).all()
    pixels = [sample["pixel_values"] for sample in (samples[0], samples[2])]
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))
    assert "pixel_values" not in Collator(processor)([samples[1]])


def test_a_pack_is_one_sequence_whose_rows_begin_at_position_0(dataset, processor):
    samples = [dataset[i] for i in range(5)]
    batch = Collator(processor)([samples[:3], samples[3:]])
    for sequence, pack in enumerate([samples[:3], samples[3:]]):
        ids = torch.cat([row["input_ids"] for row in pack])
        assert torch.equal(batch["input_ids"][sequence, : len(ids)], ids)
        assert batch["attention_mask"][sequence].sum() == len(ids)
        positions = [place for row in pack for place in range(len(row["input_ids"]))]
        positions += range(batch["input_ids"].shape[1] - len(ids))
        assert batch["packing"].position_ids[sequence].tolist() == positions
    assert torch.equal(
        batch["pixel_values"], torch.cat([samples[i]["pixel_values"] for i in (0, 2, 3, 4)])
    )
    assert batch["labels"].shape == batch["input_ids"].shape


def test_the_layout_counts_rows_and_paddings_in_all_sequences():
    packing = lay_out([[3, 4], [7], [1]])
    assert packing.position_ids.tolist() == [
        [0, 1, 2, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 0, 1, 2, 3, 4, 5],
    ]
    assert packing.starts_Q.tolist() == [0, 3, 7, 14, 15, 21]
    assert packing.starts_Q.dtype == torch.int32
    assert packing.longest == 7


def test_conversations_and_packs_do_not_mix(dataset, processor):
    with pytest.raises(TypeError, match="of conversations or of packs of them, not of both"):
        Collator(processor)([dataset[0], [dataset[1]]])


def test_features_and_skipped_rows_come_through(processor, dataset):
    rows = [{k: v for k, v in dataset[i].items() if k != "pixel_values"} for i in range(3)]
    rows[0] |= {"image_features": torch.ones(2, 4, 3), "image_files": ["one.png", "two.png"]}
    rows[1]["image_features"] = torch.ones(0, 4, 3)
    rows[2]["image_features"] = 2 * torch.ones(1, 4, 3)
    rows[1]["skipped"] = [{"row": 1}]
    batch = Collator(processor)(rows)
    assert batch["image_features"][:, 0, 0].tolist() == [1, 1, 2]
    assert batch["skipped"] == [{"row": 1}]
    assert "pixel_values" not in batch


def test_a_file_that_several_rows_show_has_its_picture_there_once(processor, dataset):
    samples = [dataset[index] for index in (3, 0, 1, 0)]  # row 1 is text alone
    samples.append({**dataset[2], "image_files": ["twice.png", "twice.png"]})
    samples[-1]["pixel_values"] = samples[-1]["pixel_values"].repeat(2, 1, 1, 1)
    for rows in (samples, [samples[:2], samples[2:]]):
        batch = Collator(processor)(rows)
        pixels = [samples[row]["pixel_values"][:1] for row in (0, 1, 4)]
        assert torch.equal(batch["pixel_values"], torch.cat(pixels))
        assert batch["image_index"].tolist() == [0, 1, 1, 2, 2]
    assert "image_index" not in Collator(processor)(samples[:3])
