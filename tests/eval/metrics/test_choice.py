import pytest

from eval.metrics import choice
from tests.eval.metrics.rows import sample, scored


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("A", "A"),
        (" B \n", "B"),
        ("C. a cat", "C"),
        ("The answer is D.", "D"),
        ("I think so. The answer is D!", "D"),
        ("A.", None),  # two characters
        ("a", None),
        ("(A)", None),
        ("A.cat", None),
        ("A cat", None),
        ("AB", None),
        ("F", None),
        ("", None),
        ("The answer is D", None),  # a character must follow
        ("The answer is A. The answer is B.", None),
        ("The answer is A. The answer is A.", None),
        ("the answer is A.", None),
        ("E. none", "E"),
    ],
)
def test_letters_follow_the_script_of_llava(text, parsed):
    assert choice.parse(text) == parsed


def test_unparsed_and_not_offered_letters_are_wrong_and_flagged_apart():
    asked = sample("A", options=["cat", "dog"])
    assert choice.score("cat", asked).flags == ("unparsed",)
    assert choice.score("C", asked).flags == ("not_offered",)
    assert choice.score("The answer is Z.", asked).flags == ("not_offered",)
    assert choice.score("B", asked).flags == ()
    assert all(choice.score(t, asked).values == {"accuracy": 0.0} for t in ("cat", "C", "B"))
    assert choice.score("A", asked).values == {"accuracy": 1.0}


def test_choice_chance_is_the_better_of_guessing_and_the_commonest_letter():
    options = ["w", "x", "y", "z"]
    even = scored(choice, [("A", letter) for letter in "ABCD"], options=options)
    assert choice.aggregate(even)["accuracy"].chance == 0.25
    uneven = scored(choice, [("A", letter) for letter in "AAAB"], options=options)
    assert choice.aggregate(uneven)["accuracy"].chance == 0.75


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("A", "A"),
        ("a", "A"),
        (" b ", "B"),
        ("A.", "A"),
        ("A. cat", "A"),
        ("A.cat", "A"),
        ("a.", None),
        ("A cat", None),
        ("(A)", None),
        ("The answer is A.", None),
        ("F", None),
        ("F.", None),
        ("", None),
    ],
)
def test_lmms_takes_any_case_or_a_capital_and_a_period(text, parsed):
    score = choice.RULES["lmms"].score(text, sample("A", options=["cat", "dog"]))
    assert score.parsed == parsed
    assert score.values == {"accuracy": float(parsed == "A")}
    assert choice.RULES["libmoe"] == choice.RULES["lmms"]
