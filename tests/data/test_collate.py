import torch

from llava_compete.data import IGNORED, Collator


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
