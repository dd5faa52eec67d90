import torch

from llava_compete.data import encode, to_messages
from tests import tiny
from tests.tiny import say


def test_truncation_drops_whole_turns_and_nothing_else(tmp_path, processor):
    turns = [text for i in range(3) for text in (f"Question {i}?", f"Answer {i}.")]
    whole = encode(processor, to_messages(say(*turns)), [])
    two = encode(processor, to_messages(say(*turns[:4])), [])
    one = encode(processor, to_messages(say(*turns[:2])), [])
    for max_length, wanted in (
        (len(whole["input_ids"]), whole),
        (len(whole["input_ids"]) - 1, two),
        (len(two["input_ids"]), two),
        (len(two["input_ids"]) - 1, one),
        (len(one["input_ids"]), one),
    ):
        cut = encode(processor, to_messages(say(*turns)), [], max_length)
        assert torch.equal(cut["input_ids"], wanted["input_ids"])
        assert torch.equal(cut["labels"], wanted["labels"])


def test_truncation_drops_the_pictures_of_the_dropped_turns(processor):
    pictures = [tiny.draw(0), tiny.draw(1)]
    messages = to_messages(say("<image>a", "b", "<image>c", "d", image=["0", "1"]))
    whole = encode(processor, messages, pictures)
    cut = encode(processor, messages, pictures, len(whole["input_ids"]) - 1)
    assert torch.equal(cut["pixel_values"], whole["pixel_values"][:1])
    assert (cut["input_ids"] == processor.image_token_id).sum() == tiny.NUM_PATCHES


def test_truncation_to_turns_without_a_picture_leaves_no_pixels(processor):
    messages = to_messages(say("a", "b", "<image>c", "d", image="0"))
    whole = encode(processor, messages, [tiny.draw(0)])
    cut = encode(processor, messages, [tiny.draw(0)], len(whole["input_ids"]) - 1)
    assert set(cut) == {"input_ids", "labels"}


def test_a_first_turn_that_is_too_long_loses_the_end_of_its_answer(processor):
    messages = to_messages(say("<image>a", "a long answer", "c", "d", image="0"))
    first = encode(processor, messages[:2], [tiny.draw(0)])
    length = len(first["input_ids"]) - 6
    cut = encode(processor, messages, [tiny.draw(0)], length)
    assert torch.equal(cut["input_ids"], first["input_ids"][:length])
    assert torch.equal(cut["labels"], first["labels"][:length])
    assert torch.equal(cut["pixel_values"], first["pixel_values"])


def test_a_system_turn_survives_truncation(processor):
    row = say("a", "b", "c", "d")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    whole = encode(processor, to_messages(row), [])["input_ids"]
    cut = encode(processor, to_messages(row), [], len(whole) - 1)["input_ids"]
    assert torch.equal(cut, whole[: len(cut)])
    assert "Be brief." in processor.tokenizer.decode(cut)
