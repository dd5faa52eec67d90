import pytest

from eval.metrics.mmmu_open import is_right, key_tails, parse


@pytest.mark.parametrize(
    ("text", "tails"),
    [
        ("Paris", ["paris"]),
        ("It is Paris.", ["paris"]),
        ("The answer is Paris", ["paris"]),  # the shortest tail
        ("So the final answer is: 5 apples", ["is: 5 apples"]),
        ("x = 5 = 7", ["7"]),
        ("x = 5\nno more", ["x = 5\nno more"]),  # "=" counts in the last line alone
        ("nothing\nx = 5", ["5"]),
        ("This is a.\nIt is b", ["a.", "b"]),
        ("This is a. It is b", ["b"]),  # sentences are not cut
        ("the answer is ", ["is"]),  # the space behind "is" is stripped first
        ("is :", ["is :"]),  # a lone mark is no tail
        ("", [""]),
        ("...", [""]),
        ("So ", ["so"]),
    ],
)
def test_tails_behind_key_words(text, tails):
    assert key_tails(text) == tails


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("5", [5.0]),
        ("Paris", ["paris"]),
        ("The answer is 3.14159", [3.14]),
        ("1,234.5", [1234.5, 1234.0, 234.5]),  # each pattern sees its own numbers
        ("a", [" a", "a "]),
        ("about 12 apples", ["about 12 apples", 12.0]),
        ("-3.5 degrees", ["-3.5 degrees", -3.5]),
        ("between 1,000 and 2e3 men", ["between 1,000 and 2e3 men", 1000.0, 2000.0, 0.0, 3.0]),
        (".5 m", ["5 m", 5.0]),  # the period at its end is stripped
        ("it is 7 or 7.0", ["7 or 7.0", 7.0]),  # each once
        ("x12", ["x12", 12.0]),
        ("12x", ["12x"]),  # no word boundary
        ("1.5x", ["1.5x", 1.5]),
        ("5,3", [53.0, 3.0]),
    ],
)
def test_candidates(text, candidates):
    assert parse(text) == candidates


@pytest.mark.parametrize(
    ("text", "references", "right"),
    [
        ("It is Paris, the capital", ["Paris"], 1),  # contained
        ("Par", ["Paris"], 0),
        ("The answer is 5", ["5"], 1),
        ("The answer is 5 apples", ["5"], 1),
        ("The answer is 15", ["5"], 0),
        ("5.004", ["5"], 1),  # two decimals
        ("5.006", ["5"], 0),
        ("1,000", ["1000"], 1),
        ("1000", ["1,000.0"], 1),
        ("five", ["5"], 0),
        ("a", ["A"], 1),
        ("it is a cat", ["A"], 1),  # "a " stands in "a cat"
        ("banana", ["a"], 0),
        ("banana ", ["a"], 0),
        ("x", ["y", "x"], 1),
        ("24/7", ["24"], 1),
        ("nan", ["nan"], 0),
        ("", ["x"], 0),
    ],
)
def test_text_is_contained_and_numbers_are_equal(text, references, right):
    assert is_right(parse(text), references) == bool(right)
