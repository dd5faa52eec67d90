import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoProcessor

from llava_compete.data import IGNORED
from llava_compete.data.encode import encode
from llava_compete.processor import (
    CHAT_FORMATS,
    IMAGE_TOKEN,
    build_processor,
    chat_format,
    count_images,
    end_of_turn_id,
    prompt_batch,
    with_images,
)
from tests import tiny

ANSWERS = ("A red box.", "Two of them.")
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[0]}]},
    {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[1]}]},
]
END = {
    "chatml": "<|im_end|>",
    "phi3": "<|end|>",
    "llama3": "<|eot_id|>",
    "plain": "<|endoftext|>",
    "vicuna": "<|endoftext|>",
}


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return tiny.make_tower(tmp_path_factory.mktemp("tower"))[0]


@pytest.fixture(params=CHAT_FORMATS)
def format_name(request):
    return request.param


@pytest.fixture
def formatted(vision, format_name):
    """A processor with a tokenizer that knows this chat format's tokens."""
    tokenizer = tiny.make_tokenizer(CHAT_FORMATS[format_name].tokens)
    return build_processor(tokenizer, vision, format_name=format_name)


def answered(encoded):
    """The labelled ids as runs of neighbours."""
    runs, previous = [], IGNORED
    for label in encoded["labels"].tolist():
        if label != IGNORED:
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return runs


def test_the_answer_mask_covers_exactly_the_answers_and_their_end(formatted, format_name):
    encoded = encode(formatted, MESSAGES, [tiny.draw(1)])
    decoded = [formatted.tokenizer.decode(run) for run in answered(encoded)]
    lead = CHAT_FORMATS[format_name].lead
    assert decoded == [lead + answer + END[format_name] for answer in ANSWERS]


def test_the_end_of_a_turn_is_one_token_and_generation_stops_there(formatted, format_name):
    expected = formatted.tokenizer.convert_tokens_to_ids(END[format_name])
    assert end_of_turn_id(formatted) == expected
    encoded = encode(formatted, MESSAGES, [tiny.draw(1)])
    assert [run[-1] for run in answered(encoded)] == [expected, expected]


def test_the_rendered_conversation_is_the_formats_markers_around_the_turns(formatted, format_name):
    markers = CHAT_FORMATS[format_name]
    wanted = markers.system[0] + "Be short." + markers.system[1]
    wanted += markers.user[0] + "<image>\nWhat is it?" + markers.user[1]
    answers = [markers.lead + answer + END[format_name] for answer in ANSWERS]
    wanted += markers.assistant[0] + answers[0] + markers.assistant[2]
    wanted += markers.user[0] + "How many?" + markers.user[1]
    wanted += markers.assistant[0] + answers[1] + markers.assistant[2]
    assert formatted.apply_chat_template(MESSAGES) == wanted


def test_encoding_and_decoding_gives_the_text_back(formatted):
    text = formatted.apply_chat_template(MESSAGES)
    ids = encode(formatted, MESSAGES, [tiny.draw(1)])["input_ids"]
    decoded = formatted.tokenizer.decode(ids)
    assert decoded == text.replace(IMAGE_TOKEN, IMAGE_TOKEN * tiny.NUM_PATCHES)


@pytest.mark.parametrize("turns", [1, 2])
def test_the_generation_prompt_is_a_prefix_of_the_training_ids(formatted, turns):
    whole = MESSAGES[: 1 + 2 * turns]
    trained = encode(formatted, whole, [tiny.draw(1)])
    prompt = prompt_batch(formatted, [whole[:-1]], [[tiny.draw(1)]])
    ids = prompt["input_ids"][0].tolist()
    assert trained["input_ids"][: len(ids)].tolist() == ids
    assert trained["labels"][len(ids)] != IGNORED, "the answer begins where the prompt ends"
    assert len(answered({"labels": trained["labels"][: len(ids)]})) == turns - 1
    assert_close(prompt["pixel_values"], trained["pixel_values"])


def test_a_plain_string_is_the_same_as_one_text_item(formatted):
    plain = [{**m, "content": m["content"]} for m in MESSAGES]
    plain[-1] = {"role": "assistant", "content": ANSWERS[1]}
    plain[-2] = {"role": "user", "content": "How many?"}
    one, two = (encode(formatted, m, [tiny.draw(1)]) for m in (MESSAGES, plain))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["labels"], two["labels"])


def test_an_unknown_role_is_refused_by_the_template(processor):
    with pytest.raises(Exception, match="role tool is not system, user or assistant"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_format_is_found_by_the_tokens_the_tokenizer_knows(vision, format_name):
    tokenizer = tiny.make_tokenizer(CHAT_FORMATS[format_name].tokens)
    found = "plain" if format_name == "vicuna" else format_name
    assert chat_format(tokenizer) == chat_format(tokenizer, found)


def test_vicunas_opening_stands_where_there_is_no_system_message(vision):
    tokenizer = tiny.make_tokenizer(())
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    processor = build_processor(tokenizer, vision, format_name="vicuna")
    text = processor.apply_chat_template(MESSAGES[1:4])
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is it? ASSISTANT: A red box.</s>USER: How many? "
    )


def test_a_beginning_of_text_token_is_written_once_where_the_tokenizer_writes_one(vision):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    processor = build_processor(tokenizer, vision)
    ids = encode(processor, MESSAGES, [tiny.draw(1)])["input_ids"].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_format_whose_tokens_are_missing_and_an_unknown_one_are_refused():
    tokenizer = tiny.make_tokenizer()
    with pytest.raises(ValueError, match=r"chat_format='phi3': the tokenizer has no .*<\|user\|>"):
        chat_format(tokenizer, "phi3")
    with pytest.raises(ValueError, match=r"chat_format='chatlm' is not known.*chatml"):
        chat_format(tokenizer, "chatlm")


def test_an_image_becomes_as_many_placeholders_as_the_tower_has_patches(processor, vision):
    for count in (1, 2, 3):
        content = [{"type": "image"}] * count + [{"type": "text", "text": "?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
        encoded = encode(processor, messages, [tiny.draw(i) for i in range(count)])
        placeholders = encoded["input_ids"] == processor.image_token_id
        assert placeholders.sum() == count * vision.num_patches
        assert encoded["pixel_values"].shape == (count, 3, vision.image_size, vision.image_size)
        assert not (placeholders & (encoded["labels"] != IGNORED)).any()


def test_image_token_and_padding_are_special_tokens_of_their_own(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False) == [processor.image_token_id]
    assert tokenizer.decode([processor.image_token_id, 65], skip_special_tokens=True) != IMAGE_TOKEN
    assert tokenizer.pad_token_id not in (None, processor.image_token_id, tokenizer.eos_token_id)


def test_a_tokenizer_without_padding_pads_with_its_end(vision):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = None
    assert build_processor(tokenizer, vision).tokenizer.pad_token == "<|endoftext|>"


def test_pictures_are_padded_to_a_square_with_the_mean_and_then_scaled(processor, vision):
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    pixels_3HW = torch.as_tensor(
        processor.image_processor([wide], return_tensors="pt")["pixel_values"][0]
    )
    mean, std = torch.tensor(tiny.MEAN), torch.tensor(tiny.STD)
    assert_close(pixels_3HW[:, 8, 8], (torch.tensor([1.0, 0, 0]) - mean) / std)
    # The border has the mean colour, in whole steps of 1/255, and so is nearly 0.
    assert pixels_3HW[:, 0, :].abs().max() < 0.02
    assert pixels_3HW[:, -1, :].abs().max() < 0.02
    square = Image.fromarray(np.full((40, 40, 3), 128, dtype=np.uint8))
    pixels_3HW = torch.as_tensor(
        processor.image_processor([square], return_tensors="pt")["pixel_values"][0]
    )
    grey_3 = (128 / 255 - mean) / std
    assert_close(pixels_3HW, grey_3[:, None, None].expand_as(pixels_3HW))


def test_prompts_are_padded_on_the_left_and_each_ends_where_its_answer_begins(processor):
    short = [{"role": "user", "content": "Hi"}]
    long = MESSAGES[1:2]
    batch = prompt_batch(processor, [short, long], [[], [tiny.draw(0)]])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    header = CHAT_FORMATS["chatml"].assistant[0]
    for row in range(2):
        assert processor.tokenizer.decode(ids[row]).endswith(header)
    alone = prompt_batch(processor, [short], [[]])
    assert set(alone) == {"input_ids", "attention_mask"}
    assert torch.equal(ids[0][mask[0].bool()], alone["input_ids"][0])
    padding = ids.shape[1] - alone["input_ids"].shape[1]
    assert padding > 0
    assert not mask[0, :padding].any()
    assert mask[0, padding:].all()
    assert batch["pixel_values"].shape[0] == 1


def test_a_prompt_with_another_number_of_pictures_is_refused(processor):
    with pytest.raises(ValueError, match="prompt 0 asks for 1 images, 2 are given"):
        prompt_batch(processor, [MESSAGES[1:2]], [[tiny.draw(0), tiny.draw(1)]])


def test_pictures_go_into_their_places_in_order_and_the_messages_stay_as_they_were():
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "text", "text": "this"}, {"type": "image"}]},
    ]
    first, second = tiny.draw(0), tiny.draw(1)
    filled = with_images(messages, [first, second])
    assert filled[0]["content"][0]["image"] is first
    assert filled[2]["content"][1]["image"] is second
    assert "image" not in messages[0]["content"][0]
    assert count_images(messages) == count_images(filled) == 2


def test_a_saved_processor_gives_the_same_tensors(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    one, two = (encode(p, MESSAGES, [tiny.draw(3)]) for p in (processor, loaded))
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert end_of_turn_id(loaded) == end_of_turn_id(processor)
