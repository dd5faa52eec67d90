import pytest

from eval.metrics.mmmu_choice import parse, parse_lmms

ANIMALS = ("a cat", "a dog", "an owl", "an elk")


@pytest.mark.parametrize(
    ("text", "official", "lmms"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        (".B.", "B", "B"),
        ("(B)", "B", "B"),
        ("The answer is (B).", "B", "B"),
        ("A or B", "B", "B"),  # the last one between spaces
        ("B, not A", "A", "A"),
        ("B B A B", "B", "B"),
        ("(A) or (C), surely not D", "C", "C"),  # brackets go before bare letters
        ("(A) then (C) then (A)", "A", "A"),
        ("B. a dog", None, "B"),  # only lmms takes a letter with a period
        ("B: a dog", None, None),
        ("A. then B.", "B", "B"),  # the last period is stripped
        ("B. then A. now", None, "A"),  # none stands between spaces: the first of the alphabet
        ("A. or B", "B", "B"),
        ("NBA player", None, "A"),  # lmms takes "A " at the end of a word
        ("FDA or B", "B", "B"),
        ("CAB or DAB", None, "B"),
        ("b", None, None),
        ("E", None, None),
        ("", None, None),
        # marks are stripped one kind after the other: the comma comes first
        ("B.,", "B", "B"),
        ("B,.", None, None),
        ("B?!", "B", "B"),
        ("B!?", None, None),
        # the text of an option, in more than five words
        ("I can see that a DOG runs", "B", "B"),
        ("I see that a dog", None, None),
        ("first a dog, then later a cat", "A", "A"),
        ("first a cat, then later a dog", "B", "B"),
        ("there is nothing here that fits it", None, None),
        ("Surely B is it, since a cat runs", "B", "B"),  # a letter goes before any text
    ],
)
def test_letters_and_the_random_branch(text, official, lmms):
    assert parse(text, "ABCD", ANIMALS) == official
    assert parse_lmms(text, "ABCD", ANIMALS) == lmms


def test_ten_options_have_ten_letters():
    options = [f"number {i}" for i in range(10)]
    assert parse("(J)", "ABCDEFGHIJ", options) == "J"
    assert parse("(K)", "ABCDEFGHIJ", options) is None
