import json
import re

import pytest

from llava_compete.data import image_files, to_messages
from llava_compete.data.rows import MAX_SHOWN, row_name, source_of
from tests.tiny import say


def turns(*speakers_and_texts, **more):
    values = [{"from": speaker, "value": text} for speaker, text in speakers_and_texts]
    return {"id": "row-7", "conversations": values, **more}


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
    row = turns(("system", "Be brief."), ("human", "Hi"), ("gpt", "ok"))
    assert [message["role"] for message in to_messages(row)] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "text", ["<image>\nWhat?", "What?\n<image>", "<image>What?", "What? <image>"]
)
def test_the_only_image_of_a_turn_comes_first_wherever_it_stood(text):
    content = to_messages(say(text, "b", image="0.png"))[0]["content"]
    assert content == [{"type": "image"}, {"type": "text", "text": "What?"}]


@pytest.mark.parametrize("image", [None, []])
def test_a_row_whose_image_is_null_or_an_empty_list_is_text_only(image):
    row = say("a", "b", image=image)
    assert to_messages(row) == to_messages(say("a", "b"))
    assert image_files(row) == []


def test_keys_that_are_not_known_change_nothing_and_are_kept():
    row = say("a", "b", model="x", length="long", score="7")
    row["conversations"][1] |= {"weight": 0, "markdown": None}
    before = json.dumps(row)
    assert to_messages(row) == to_messages(say("a", "b"))
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (turns(), "no conversations; a row needs a list of turns"),
        ({"id": "row-7"}, "no conversations"),
        ({"id": "row-7", "conversations": None}, "no conversations"),
        ({"id": "row-7", "conversations": {}}, "conversations must be a list of turns, found dict"),
        (
            {"id": "row-7", "conversations": "a"},
            "conversations must be a list of turns, found str 'a'",
        ),
        ({"id": "row-7", "conversations": [["human", "a"]]}, "turn 1 must be an object, found lis"),
        ({"id": "row-7", "conversations": [None]}, "turn 1 must be an object, found NoneType"),
    ],
)
def test_conversations_that_are_no_list_of_turns_are_refused(row, fault):
    with pytest.raises(ValueError, match=f"^sample row-7: {re.escape(fault)}"):
        to_messages(row)


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "bot", "value": "x"},
        {"from": ["human"], "value": "x"},
        {"from": "human", "value": 3},
        {"from": "human"},
        {"role": "user", "content": "x"},
    ],
)
def test_a_turn_of_another_speaker_or_without_text_is_refused(turn):
    with pytest.raises(
        ValueError,
        match=r"^sample row-7: turn 2: a turn needs 'from' \(one of \['gpt', 'human', 'system'\]\) "
        r"and 'value' \(text\), got \{.*; python -m data_prep normalise reads other formats",
    ):
        to_messages(
            {"id": "row-7", "conversations": [{"from": "human", "value": "a"}, turn]},
        )


@pytest.mark.parametrize(
    ("speakers", "fault"),
    [
        ("gh", "the roles are swapped: exchange 'human' and 'gpt'"),
        ("ghgh", "the roles are swapped: exchange 'human' and 'gpt'"),
        ("sgh", "the roles are swapped"),
        ("h", "turn 1 has no answer: drop it"),
        ("hgh", "turn 3 has no answer: drop it"),
        ("ghg", "turn 1 is gpt's: drop it"),
        ("sghg", "turn 2 is gpt's: drop it"),
        ("hhg", "turns 1 and 2 are both human's: join them"),
        ("shgg", "turns 3 and 4 are both gpt's: join them"),
        ("s", "turn 1 has no answer"),
    ],
)
def test_turns_that_do_not_alternate_are_refused_with_what_to_do(speakers, fault):
    names = {"h": "human", "g": "gpt", "s": "system"}
    row = turns(*((names[letter], "x") for letter in speakers))
    rule = "human and gpt must alternate, human first"
    with pytest.raises(ValueError, match=f"^sample row-7: {rule}; {fault}"):
        to_messages(row)


@pytest.mark.parametrize(("speakers", "place"), [("hgs", 3), ("hsg", 2), ("sshg", 2)])
def test_a_system_turn_that_is_not_the_first_is_refused(speakers, place):
    names = {"h": "human", "g": "gpt", "s": "system"}
    with pytest.raises(ValueError, match=f"turn {place} is system's, which may only come first"):
        to_messages(turns(*((names[letter], "x") for letter in speakers)))


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
@pytest.mark.parametrize(
    ("place", "what"), [(0, "system text"), (1, "question"), (2, "answer")], ids=str
)
def test_an_empty_turn_is_refused(place, what, text):
    values = ["Be brief.", "Hi", "ok"]
    values[place] = text
    row = turns(*zip(("system", "human", "gpt"), values, strict=True))
    with pytest.raises(ValueError, match=f"row-7: turn {place + 1}: the {what} is empty; drop"):
        to_messages(row)


@pytest.mark.parametrize(("place", "what"), [(0, "system text"), (2, "answer")])
def test_an_image_outside_a_question_is_refused_even_where_the_count_fits(place, what):
    values = ["Be brief.", "Hi", "ok"]
    values[place] += "<image>"
    row = turns(*zip(("system", "human", "gpt"), values, strict=True), image="a.png")
    with pytest.raises(ValueError, match=f"turn {place + 1}: <image> in the {what}; it stands for"):
        to_messages(row)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (say("<image>\na", "b"), "1 <image> in the text, images: []"),
        (say("a", "b", image="x.png"), "0 <image> in the text, images: ['x.png']"),
        (say("<image>", "b", image=["x", "y"]), "1 <image> in the text, images: ['x', 'y']"),
        (say("<image><image>", "b", image="x"), "2 <image> in the text, images: ['x']"),
    ],
)
def test_placeholders_and_images_must_be_as_many(row, fault):
    with pytest.raises(ValueError, match=f"^sample row-7: {re.escape(fault)}; each image needs"):
        to_messages(row)


def test_text_that_reads_as_a_placeholder_without_its_placeholder_is_refused():
    with pytest.raises(ValueError, match=r"turn 1: the text around <image> reads as one"):
        to_messages(say("<ima<image>ge>", "b", image="x"))


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (3, "image must be a file name or a list of names, found 3"),
        (True, "image must be a file name or a list of names, found True"),
        ({"path": "a"}, "image must be a file name or a list of names, found {'path': 'a'}"),
        (["a", 3], "image must be a file name or a list of names, found ['a', 3]"),
        ([["a"]], "image must be a file name or a list of names"),
        ("", "image is an empty text; leave it out of a row without picture"),
        (["a", " "], "image is an empty text"),
        ("a\0b", r"image a\x00b holds a NUL character"),
        ("a\udc80", r"image: character 2 is half of one (lone surrogate \udc80)"),
    ],
)
def test_an_image_that_is_no_file_name_is_refused(image, fault):
    row = say("<image>", "b", image=image)
    for function in (image_files, to_messages):
        with pytest.raises(ValueError, match=f"^sample row-7: {re.escape(fault)}"):
            function(row)


@pytest.mark.parametrize(
    ("name", "text"), [("a", "a"), (7, "7"), (0, "0"), (1.5, "1.5"), (-2, "-2"), ("7", "7")]
)
def test_an_id_is_a_text_or_a_number(name, text):
    row = {**say("a", "b"), "id": name}
    to_messages(row)
    assert row_name(row, 3) == text


@pytest.mark.parametrize("name", [True, [], ["a"], {}, ""])
def test_an_id_that_is_neither_is_refused(name):
    row = {**say("a", "b"), "id": name}
    assert row_name(row, 3) == "number 3"
    with pytest.raises(ValueError, match=r"^sample number 3: id must be a text or a number, found"):
        to_messages(row, row_name(row, 3))


@pytest.mark.parametrize("row", [say("a"), say("<image>", "b", image=3)])
def test_a_row_without_id_is_named_as_the_caller_says(row):
    del row["id"]
    assert row_name(row, 3) == row_name({"id": None}, 3) == "number 3"
    with pytest.raises(ValueError, match=r"^sample without id: "):
        to_messages(row)
    with pytest.raises(ValueError, match=r"^sample number 3: "):
        to_messages(row, row_name(row, 3))


@pytest.mark.parametrize("row", [[], "row", 3, None])
def test_a_row_that_is_no_object_is_refused(row):
    with pytest.raises(ValueError, match=r"^sample without id: a row must be an object, found"):
        to_messages(row)


@pytest.mark.parametrize("length", ["12", 12.0, True, 0, -1, None, [12]])
def test_a_length_that_is_no_whole_number_is_refused_where_the_row_says_by_what(length):
    row = say("a", "b", length=length, length_by="0123456789abcdef")
    with pytest.raises(ValueError, match="length must be a whole number of tokens, found"):
        to_messages(row)
    to_messages({**row, "length": 12})


def test_half_a_character_is_refused_where_it_stands():
    row = json.loads(r"""{"id": "row-7", "conversations": [{"from": "human", "value": "a"},
        {"from": "gpt", "value": "ok \ud83d"}]}""")
    with pytest.raises(ValueError, match=r"turn 2: character 4 is half of one \(lone surrogate"):
        to_messages(row)


def test_any_character_that_is_whole_is_kept():
    text = "\0\x7f\u2028\U0001f600\ufeff e\u0301"
    assert to_messages(say("a", text))[1]["content"] == [{"type": "text", "text": text}]


def test_long_values_are_quoted_short_and_on_one_line():
    long = "x\n" * 10**6
    rows = [
        {**say("a", "b"), "id": long, "image": "y"},
        say("a", "b", image=[long] * 1000),
        {"id": "r", "conversations": [{"from": long, "value": "x", long: [long]}]},
        {"id": "r", "conversations": [{"from": "human", "value": [[[[[[[[long]]]]]]]]}]},
        {"id": "r", "conversations": long},
    ]
    for row in rows:
        with pytest.raises(ValueError, match=r"^sample ") as caught:
            to_messages(row)
        assert len(str(caught.value)) < 4 * MAX_SHOWN
        assert str(caught.value).isprintable()


def test_a_name_with_half_a_character_can_be_printed():
    row = {**say("a"), "id": "a\ud83d\n"}
    with pytest.raises(ValueError, match=r"^sample a\\ud83d\\n: ") as caught:
        to_messages(row)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"image": "coco/train2017/1.jpg"}, "coco"),
        ({"image": "./coco//1.jpg"}, "coco"),
        ({"image": ["vg/1.jpg", "coco/1.jpg"]}, "vg"),
        ({"image": "1.jpg"}, "images"),
        ({"image": "./1.jpg"}, "images"),
        ({}, "text"),
        ({"image": None}, "text"),
        ({"image": "coco/1.jpg", "source": "mine"}, "mine"),
        ({"source": "mine"}, "mine"),
        ({"image": "coco/1.jpg", "source": ""}, "coco"),
        ({"image": "coco/1.jpg", "source": 3}, "coco"),
    ],
)
def test_a_row_comes_from_its_source_or_the_first_folder_of_its_first_image(row, source):
    assert source_of(row) == source
