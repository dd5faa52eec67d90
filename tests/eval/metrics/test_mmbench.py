import pytest

from eval.metrics import mmbench
from tests.eval.metrics.rows import row, sample

ANIMALS = ("a cat", "a dog", "an owl", "an elk")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("B", "B"),
        ("I choose B", "B"),
        ("A", "A"),
        ("It is A", "A"),  # three words
        ("It is not A", None),  # four: the article?
        ("A large grey thing", None),
        ("A or B", None),  # two letters
        ("A or B. surely", "B"),  # two bare or dressed: only one wears a period
        ("B.", "B"),
        ("B,", "B"),
        ("B:", "B"),
        ("B)", "B"),
        ("B).", "B"),
        ("(B)", "B"),
        ("(B).", "B"),
        (":B", "B"),
        (":B,", "B"),
        (":B.", "B"),
        (":B)", "B"),
        (":B).", "B"),
        ("Answer:B", None),  # one word
        ("Answer: B", "B"),
        ("b", None),
        ("[B]", None),
        ("The answer is (C). It is not D.", "D"),  # a period comes before brackets
        ("A. B. neither", None),
        ("E", "E"),
        ("a dog", "B"),
        ("It shows A DOG running", "B"),
        ("a cat and a dog", None),
        ("an animal", None),
        ("A cat is what I see", "A"),  # too long for the article, but the text names it
        ("", None),
        ("B B B", "B"),  # counted once
    ],
)
def test_the_letter_by_rule(text, parsed):
    score = mmbench.score(text, sample("B", options=ANIMALS, index=1))
    assert score.parsed == parsed
    assert score.values == {"row_accuracy": float(parsed == "B")}


def test_what_the_rule_leaves_open_is_wrong_and_flagged():
    assert mmbench.score("no idea", sample("B", options=ANIMALS)).flags == ("unparsed",)
    assert mmbench.score("E", sample("B", options=ANIMALS)).flags == ("not_offered",)


def asked(index, outcome, options=ANIMALS):
    text = "A" if outcome == "r" else "B"
    return row(mmbench, text, sample("A", options=options, index=index))


def test_every_row_of_a_group_must_be_right():
    rows = [asked(7 + turn * 1_000_000, "r") for turn in range(4)]
    rows += [asked(8 + turn * 1_000_000, "rrrw"[turn]) for turn in range(4)]
    rows += [asked(9 + turn * 1_000_000, "rr"[turn], ("x", "y")) for turn in range(2)]
    metrics = mmbench.aggregate(rows)
    assert metrics["circular_accuracy"].value == pytest.approx(2 / 3)
    assert metrics["circular_accuracy"].n == 3
    assert metrics["circular_accuracy"].flags == ()
    assert metrics["row_accuracy"].value == pytest.approx(9 / 10)
    # even guessing: one in 4^4, 4^4 and 2^2
    assert metrics["circular_accuracy"].chance == pytest.approx((2 / 256 + 1 / 4) / 3)


def test_rows_in_any_order_and_indices_above_a_million_form_groups():
    rows = [asked(3_000_241, "r", "xy"), asked(241, "w", "xy"), asked(1_000_242, "r", "x")]
    assert mmbench.aggregate(rows)["circular_accuracy"].value == 0.5


def test_a_group_that_lacks_rows_is_flagged():
    metric = mmbench.aggregate([asked(7, "r"), asked(1_000_007, "r")])["circular_accuracy"]
    assert (metric.value, metric.flags) == (1, ("incomplete_groups",))
