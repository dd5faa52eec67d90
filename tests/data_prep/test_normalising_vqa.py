"""Rows of VQA tables: columns, answers of several annotators, lettered options."""

import pytest

from data_prep.formats import reader
from data_prep.normalising.faults import RowError
from data_prep.normalising.options import Table
from data_prep.normalising.vqa import check_columns, parse_columns
from tests import tiny

LETTERED = "Answer with the option's letter from the given choices directly."


def turns(question, answer):
    return tiny.say(question, answer)["conversations"]


def reason(row):
    with pytest.raises(RowError) as caught:
        read(**row)
    return caught.value.reason


def read(table=None, **row):
    return reader("vqa", table or Table())(row)


def test_a_question_with_its_picture():
    draft = read(question=" What? ", image="1.png", answer="Box")
    assert draft.turns == turns("<image>\nWhat?", "Box")
    assert draft.images == ["1.png"]


def test_a_question_without_picture():
    assert read(question="What?", answer=3).turns == turns("What?", "3")


def test_placeholders_of_the_question_stay_where_they_are():
    draft = read(question="Is <image> as <image>?", images=["1", "2"], answer="no")
    assert draft.turns == turns("Is <image> as <image>?", "no")


def test_pictures_of_several_columns_and_of_a_list_written_as_text():
    table = Table(columns={"image": ("one", "two", "three")})
    draft = read(table, question="q", answer="a", one='["1", "2"]', two=None, three="3")
    assert draft.images == ["1", "2", "3"]
    assert draft.turns == turns("<image>\n<image>\n<image>\nq", "a")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["dog", "Cat", "cat ", "dog", "cat"], "Cat"),
        (["dog", "cat", "cat", "dog"], "dog"),  # of equals the first
        ([{"answer": "red", "answer_id": 1}, {"answer": "blue"}, {"answer": "blue"}], "blue"),
        ('["dog", "cat", "cat"]', "cat"),
        ("[0.1, 0.2]", "[0.1, 0.2]"),  # a box, not two annotators
        (["", None, "cat"], "cat"),
        ([2, 3, 3], "3"),
    ],
)
def test_the_commonest_answer_is_the_answer(answers, expected):
    assert read(question="q", answers=answers).turns[1]["value"] == expected


def test_annotators_in_columns_of_their_own():
    table = Table(columns={"answer": ("a1", "a2", "a3")})
    draft = read(table, question="q", a1="cat", a2="dog", a3="dog")
    assert draft.turns[1]["value"] == "dog"


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["red", "blue"], "B", "B"),
        (["red", "blue"], "(b)", "B"),
        (["red", "blue"], "Blue", "B"),
        (["red", "blue"], 1, "B"),
        (["red", "blue"], "1", "B"),
        ("['red', 'blue']", "blue", "B"),
        ('["red", "blue"]', "blue", "B"),
        (["A. red", "B. blue"], "blue", "B"),
        (["(A) red", "(B) blue"], "A", "A"),
        (["2", "3", "1"], 1, "B"),  # a number counts, a text may also say
        ([10, 20], "20", "B"),
        (["A", "B"], "B", "B"),
    ],
)
def test_options_are_lettered_and_the_answer_is_the_letter(options, answer, letter):
    draft = read(question="q", options=options, answer=answer)
    question, said = (turn["value"] for turn in draft.turns)
    assert said == letter
    assert question.splitlines()[0] == "q"
    assert [line[:3] for line in question.splitlines()[1:-1]] == [
        f"{mark}. " for mark in "ABC"[: len(question.splitlines()) - 2]
    ]
    assert question.endswith(LETTERED)


def test_options_in_columns_of_their_own_end_where_they_are_empty():
    table = Table(columns={"options": ("A", "B", "C")})
    draft = read(table, question="q", A="red", B="blue", C="", answer="A")
    assert draft.turns == turns(f"q\nA. red\nB. blue\n{LETTERED}", "A")


def test_an_answer_that_may_mean_two_options_is_refused_until_it_is_said_how():
    row = {"question": "q", "options": ["2", "3", "1"], "answer": "1"}
    assert reason(row) == "answer"
    assert read(Table(answer_is="text"), **row).turns[1]["value"] == "C"
    assert read(Table(answer_is="index"), **row).turns[1]["value"] == "B"
    swapped = {"question": "q", "options": ["B", "A"], "answer": "A"}
    assert reason(swapped) == "answer"
    assert read(Table(answer_is="letter"), **swapped).turns[1]["value"] == "A"


def test_an_instruction_ends_every_question():
    table = Table(instruction="In one word.")
    assert read(table, question="q", answer="a").turns[0]["value"] == "q\nIn one word."
    draft = read(table, question="q", answer="A", options=["x", "y"])
    assert draft.turns[0]["value"] == "q\nA. x\nB. y\nIn one word."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answer": "a"}, "question"),
        ({"question": " ", "answer": "a"}, "question"),
        ({"question": 3, "answer": "a"}, "text"),
        ({"question": "q"}, "answer"),
        ({"question": "q", "answer": float("nan")}, "answer"),
        ({"question": "q", "answers": []}, "answer"),
        ({"question": "q", "answer": True}, "text"),
        ({"question": "q", "answer": {"text": "a"}}, "answer"),
        ({"question": "q", "answer": "a", "options": ["a"]}, "options"),
        ({"question": "q", "answer": "a", "options": "a or b"}, "options"),
        ({"question": "q", "answer": "a", "options": {"A": "a"}}, "options"),
        ({"question": "q", "answer": "a", "options": ["a", ""]}, "options"),
        ({"question": "q", "answer": "a", "options": [str(i) for i in range(27)]}, "options"),
        ({"question": "q", "answer": "c", "options": ["x", "y"]}, "answer"),
        ({"question": "q", "answer": 2, "options": ["x", "y"]}, "answer"),
        ({"question": "q", "answer": "x", "options": ["x", "x"]}, "answer"),
    ],
)
def test_a_row_without_one_question_and_one_answer_is_refused(row, expected):
    assert reason(row) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["imgae=x"], "'imgae' is none of a VQA row's; did you mean image?"),
        (["image"], "'image' must be NAME=COLUMN"),
        (["image=a,"], "must be NAME=COLUMN"),
        (["image=a", "image=b"], "image is said twice"),
        (["question=a,b"], "question=a,b must be one column"),
    ],
)
def test_columns_that_a_table_is_not_read_for_are_refused(words, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        parse_columns(words)


def test_a_column_that_the_table_does_not_have_is_named_with_the_nearest():
    columns = parse_columns(["image=img_path", "options=A,B"])
    assert columns == {"image": ("img_path",), "options": ("A", "B")}
    with pytest.raises(ValueError, match=r"no column 'img_path'; did you mean image_path\?"):
        check_columns(columns, ["question", "image_path", "A", "B"])
