import json
import pickle
import re

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from llava_compete.data import (
    IGNORED,
    Collator,
    LlavaDataset,
    encode,
    open_image,
    read_rows,
    to_messages,
)
from tests import tiny


def say(*turns, **more):
    """A row whose turns alternate, human first."""
    speakers = ("human", "gpt")
    values = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": "row-7", "conversations": values, **more}


@pytest.fixture
def dataset(tmp_path, processor):
    file, images = tiny.write_rows(tmp_path, 5, text_only={1})
    return LlavaDataset(file, images, processor)


def write(tmp_path, processor, *rows, max_length=None):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(rows))
    return LlavaDataset(file, tmp_path, processor, max_length)


def test_rows_become_messages_with_images_in_their_place():
    row = say("<image>\nWhat?", "A box.", "Sure?", "Yes.", image="a.png")
    assert to_messages(row) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A box."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]


def test_an_image_may_stand_after_or_between_texts():
    row = say("First <image>\nthen\n<image>", "ok", image=["a.png", "b.png"])
    assert to_messages(row)[0]["content"] == [
        {"type": "text", "text": "First "},
        {"type": "image"},
        {"type": "text", "text": "then"},
        {"type": "image"},
    ]


def test_a_system_turn_is_kept():
    row = say("Hi", "ok")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert [message["role"] for message in to_messages(row)] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "row-7"}, "no conversations"),
        ({"id": "row-7", "conversations": []}, "no conversations"),
        (say("a"), r"human and gpt must alternate, human first; got \['user'\]"),
        (say("a", "b", "c"), "must alternate"),
        ({"id": "row-7", "conversations": say("a", "b")["conversations"][::-1]}, "must alternate"),
        (
            {"id": "row-7", "conversations": [{"from": "bot", "value": "x"}]},
            r"a turn needs 'from' \(one of \['gpt', 'human', 'system'\]\) .*got .*bot",
        ),
        ({"id": "row-7", "conversations": [{"from": "human", "value": 3}]}, "'value' (text)"),
        (say("<image>\na", "b"), r"1 <image> in the text, images: \[\]"),
        (say("a", "b", image="x.png"), r"0 <image> in the text, images: \['x.png'\]"),
        (say("<image>", "b", image=["x", "y"]), r"1 <image> in the text, images: \['x', 'y'\]"),
    ],
)
def test_a_faulty_row_is_refused_by_name_and_fault(row, message):
    pattern = message if "\\" in message or ".*" in message else re.escape(message)
    with pytest.raises(ValueError, match=f"sample row-7: .*{pattern}"):
        to_messages(row)


def test_a_row_without_id_is_named_by_its_number(tmp_path, processor):
    row = say("<image>", "b", image="gone.png")
    del row["id"]
    dataset = write(tmp_path, processor, say("a", "b"), row)
    with pytest.raises(ValueError, match=r"sample number 1: image .*gone.png does not exist"):
        dataset[1]


def test_json_and_jsonl_give_the_same_rows(tmp_path):
    first, _ = tiny.write_rows(tmp_path, 4, name="a.json")
    second, _ = tiny.write_rows(tmp_path, 4, name="b.jsonl")
    assert read_rows(first) == read_rows(second)
    assert len(read_rows(first)) == 4


def test_line_breaks_inside_a_jsonl_string_and_blank_lines_do_not_split_a_row(tmp_path):
    rows = [say("a\u2028b\x85c", "ok"), say("d", "ok")]
    file = tmp_path / "rows.jsonl"
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(text + "\n", encoding="utf-8")
    assert read_rows(file) == rows


def test_broken_files_are_refused_with_file_and_line(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl line 2 is not JSON"):
        read_rows(lines)
    whole = tmp_path / "rows.json"
    whole.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"rows.json is not JSON"):
        read_rows(whole)
    whole.write_text('{"id": 1}')
    with pytest.raises(ValueError, match="a LLaVA file is a JSON list of rows, found dict"):
        read_rows(whole)
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        read_rows(tmp_path / "nowhere.json")


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


def test_a_missing_and_an_unreadable_image_are_refused_by_sample_and_path(tmp_path):
    with pytest.raises(ValueError, match=r"sample s1: image .*gone.png does not exist"):
        open_image(tmp_path, "gone.png", "s1")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"sample s1: image .*text.png cannot be read"):
        open_image(tmp_path, "text.png", "s1")
    tiny.draw(0, (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"sample s1: image .*cut.png cannot be read"):
        open_image(tmp_path, "cut.png", "s1")


def test_a_picture_broken_inside_is_refused_like_any_unreadable_one(tmp_path):
    """Pillow raises SyntaxError for a PNG whose chunks are damaged."""
    tiny.draw(0, (64, 64)).save(tmp_path / "a.png")
    whole = bytearray((tmp_path / "a.png").read_bytes())
    length = whole.index(b"IDAT") - 1
    whole[length] -= 20  # the next chunk seems to begin within this one
    (tmp_path / "a.png").write_bytes(whole)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(SyntaxError):
        image.load()
    with pytest.raises(ValueError, match=r"sample s1: image .*a.png cannot be read"):
        open_image(tmp_path, "a.png", "s1")


def test_a_picture_too_large_to_be_one_is_refused_by_sample(tmp_path, monkeypatch):
    tiny.draw(0).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"sample s1: image .*a.png cannot be read"):
        open_image(tmp_path, "a.png", "s1")


def test_a_picture_asked_for_in_an_answer_is_refused_by_sample(tmp_path, processor):
    tiny.draw(0).save(tmp_path / "0.png")
    dataset = write(tmp_path, processor, say("a", "<image>b", image="0.png"))
    with pytest.raises(ValueError, match=r"sample row-7 of .*0 <image> tokens and 1 images"):
        dataset[0]


def test_an_image_outside_the_folder_is_refused_however_it_is_named(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    tiny.draw(0).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for file in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(ValueError, match=r"sample s1: image .* lies outside the image folder"):
            open_image(root, file, "s1")


def test_an_image_folder_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    tiny.draw(0).save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_image(tmp_path / "link", "a.png", "s1").size == (20, 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([10, 20, 30])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (4, 4), 0).save(tmp_path / "a.png")
    opened = open_image(tmp_path, "a.png", "s1")
    assert opened.mode == "RGB"
    assert opened.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    assert open_image(tmp_path, "a.tiff", "s1").mode == "RGB"


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
    "text", ["<image>\nWhat?", "What?\n<image>", "<image>What?", "What? <image>"]
)
def test_the_only_image_of_a_turn_comes_first_wherever_it_stood(text):
    content = to_messages(say(text, "b", image="0.png"))[0]["content"]
    assert content == [{"type": "image"}, {"type": "text", "text": "What?"}]


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


def test_a_system_turn_survives_truncation(processor):
    row = say("a", "b", "c", "d")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    whole = encode(processor, to_messages(row), [])["input_ids"]
    cut = encode(processor, to_messages(row), [], len(whole) - 1)["input_ids"]
    assert torch.equal(cut, whole[: len(cut)])
    assert "Be brief." in processor.tokenizer.decode(cut)


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


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", '[{"id": 1}, "text"]'), ("rows.jsonl", '{"id": 1}\n"text"\n')]
)
def test_a_row_that_is_no_object_is_named(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match="row 2 must be an object, found 'text'"):
        read_rows(file)
