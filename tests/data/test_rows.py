import re

import pytest

from llava_compete.data import to_messages
from tests.tiny import say


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


@pytest.mark.parametrize(
    "text", ["<image>\nWhat?", "What?\n<image>", "<image>What?", "What? <image>"]
)
def test_the_only_image_of_a_turn_comes_first_wherever_it_stood(text):
    content = to_messages(say(text, "b", image="0.png"))[0]["content"]
    assert content == [{"type": "image"}, {"type": "text", "text": "What?"}]
