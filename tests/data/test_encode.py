import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_compete.data import (
    IGNORED,
    image_tokens,
    measure,
    processor_fingerprint,
    to_messages,
    tokenise,
)
from llava_compete.data.encode import encode
from llava_compete.processor import build_processor, with_images
from tests import tiny
from tests.tiny import say

TEXTS = st.text("ab é☃\n<>|", min_size=1, max_size=12).filter(str.strip)


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


@st.composite
def conversations(draw):
    """A row of 1 to 4 exchanges, some with pictures, and perhaps a system turn."""
    turns, images = [], 0
    for _ in range(draw(st.integers(1, 4))):
        pictures = draw(st.integers(0, 2))
        images += pictures
        turns += ["<image>" * pictures + draw(TEXTS), draw(TEXTS)]
    row = say(*turns, image=[str(index) for index in range(images)])
    if draw(st.booleans()):
        row["conversations"].insert(0, {"from": "system", "value": draw(TEXTS)})
    return row


def outcome(make):
    """What comes back, or what the ValueError says."""
    try:
        return make()
    except ValueError as error:
        return str(error)


def by_the_processor(processor, messages, images):
    """Ids and labels as LlavaProcessor itself makes them."""
    rendered = processor.apply_chat_template(
        [with_images(messages, images)],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False},
    )
    ids = torch.tensor(rendered["input_ids"][0])
    answered = torch.tensor(rendered["assistant_masks"][0], dtype=torch.bool)
    return ids, ids.masked_fill(~answered, IGNORED), rendered


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=conversations())
def test_ids_labels_and_pixels_are_those_of_the_processor(processor, row):
    messages = to_messages(row)
    images = [tiny.draw(index) for index in range(len(row["image"]))]
    ids, labels, rendered = by_the_processor(processor, messages, images)
    encoded = encode(processor, messages, images)
    assert torch.equal(encoded["input_ids"], ids)
    assert torch.equal(encoded["labels"], labels)
    assert ("pixel_values" in encoded) == bool(images)
    if images:
        pixels = torch.stack([torch.as_tensor(p) for p in rendered["pixel_values"]])
        assert torch.equal(encoded["pixel_values"], pixels)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=conversations(), data=st.data())
def test_a_measure_is_what_encode_makes_or_refuses(processor, row, data):
    messages = to_messages(row)
    images = [tiny.draw(index) for index in range(len(row["image"]))]
    whole = encode(processor, messages, images)["input_ids"]
    max_length = data.draw(st.integers(1, len(whole) + 1))
    encoded = outcome(lambda: encode(processor, messages, images, max_length))
    found = outcome(lambda: measure(processor, messages, max_length))
    if isinstance(encoded, str):
        assert found == encoded
        return
    assert (found.length, found.full_length) == (len(encoded["input_ids"]), len(whole))
    spoken = [message for message in messages if message["role"] != "system"]
    for dropped in range(len(spoken) // 2):
        left = messages[: len(messages) - 2 * dropped]
        if len(ids := tokenise(processor, left).input_ids) <= max_length:
            break
    assert found.exchanges_dropped == dropped
    assert found.answer_cut == (len(ids) > max_length)


def test_without_a_length_nothing_is_lost(processor):
    messages = to_messages(say(*["a long text " * 50] * 6))
    found = measure(processor, messages)
    assert found == (found.full_length, found.full_length, 0, False)


def test_a_system_turn_behind_the_last_answer_goes_with_it(processor):
    messages = to_messages(say("a", "b", "c", "d"))
    late = [*messages, {"role": "system", "content": "Be brief."}]
    whole = tokenise(processor, late).full_length
    cut = tokenise(processor, late, whole - 1)
    assert torch.equal(cut.input_ids, tokenise(processor, messages[:2]).input_ids)
    assert cut.exchanges_dropped == 1


def test_a_picture_that_the_template_does_not_show_is_refused(processor):
    messages = to_messages(say("a", "b"))
    messages[1]["content"].append({"type": "image", "text": ""})
    with pytest.raises(ValueError, match="0 <image> tokens and 1 images"):
        measure(processor, messages)
    with pytest.raises(ValueError, match="1 images are asked for, 0 given"):
        encode(processor, messages, [])


def test_tokens_of_an_image_are_the_processors(processor):
    ids, _, _ = by_the_processor(
        processor, to_messages(say("<image>a", "b", image="0")), [tiny.draw(0)]
    )
    assert image_tokens(processor) == (ids == processor.image_token_id).sum() == tiny.NUM_PATCHES


def test_the_fingerprint_is_of_what_lengths_depend_on_and_of_nothing_else(processor, tmp_path):
    found = processor_fingerprint(processor)
    assert len(found) == 16
    assert int(found, 16) >= 0
    processor.tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert processor_fingerprint(processor) == found
    processor.save_pretrained(tmp_path)
    assert processor_fingerprint(type(processor).from_pretrained(tmp_path)) == found
    vision, _ = tiny.make_tower(tmp_path / "tower")
    alike = build_processor(tiny.make_tokenizer(), vision)
    assert processor_fingerprint(alike) == found
    other_format = build_processor(tiny.make_tokenizer(), vision, format_name="plain")
    other_tokenizer = build_processor(tiny.make_tokenizer((*tiny.CHATML, "more")), vision)
    larger, _ = tiny.make_timm_tower(tmp_path / "timm")
    other_tower = build_processor(tiny.make_tokenizer(), larger)
    prints = [processor_fingerprint(p) for p in (other_format, other_tokenizer)]
    assert len({found, *prints}) == 3
    same_tokens = image_tokens(other_tower) == image_tokens(processor)
    assert (processor_fingerprint(other_tower) == found) == same_tokens
