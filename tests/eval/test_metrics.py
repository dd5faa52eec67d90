import math

import pytest

from eval.metrics import choice, exact_match, statistics, yes_no
from eval.task import Sample, Scored


def sample(reference, options=(), group="", id="1"):
    return Sample(id, "?", (reference,), options=tuple(options), group=group)


def scored(rule, pairs, **more):
    rows = []
    for text, reference in pairs:
        asked = sample(reference, **more)
        rows.append(Scored(asked, rule.score(text, asked)))
    return rows


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("No", "no"),
        ("no.", "no"),
        ("No, there is none", "no"),
        ("There is not.", "no"),
        ("It does, no", "no"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("No!", "yes"),
        ("None", "yes"),
        ("", "yes"),
        ("maybe", "yes"),
        ("Yes. No", "yes"),  # only what stands before the first period
        ("a.No", "yes"),
        ("No\nthing", "yes"),  # words are split on spaces alone
        ("no,thing", "yes"),  # the comma is dropped, not turned into a space
        (" No ", "no"),
    ],
)
def test_yes_no_follows_the_official_script_quirks_kept(text, parsed):
    assert yes_no.parse(text) == parsed


def test_yes_for_want_of_a_no_is_flagged_and_scored_as_yes():
    assert yes_no.score("maybe", sample("yes")).flags == ("yes_by_default",)
    assert yes_no.score("maybe", sample("yes")).values == {"accuracy": 1.0}
    assert yes_no.score("Yes.", sample("no")).flags == ()


def test_yes_no_metrics_by_hand():
    # 3 true yes, 1 missed; 2 true no, 1 called yes: TP 2, FP 1, FN 1, TN 1.
    pairs = [("yes", "yes"), ("Yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no")]
    metrics = yes_no.aggregate(scored(yes_no, pairs))
    assert metrics["accuracy"].value == 3 / 5
    assert metrics["accuracy"].stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert metrics["accuracy"].chance == 3 / 5
    assert metrics["precision"].value == metrics["recall"].value == pytest.approx(2 / 3)
    assert metrics["f1"].value == pytest.approx(2 / 3)
    assert (metrics["precision"].n, metrics["recall"].n, metrics["f1"].n) == (3, 3, 5)
    assert metrics["yes_ratio"].value == 3 / 5


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    pairs = [("yes", "yes"), ("no", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no")]
    metrics = yes_no.aggregate(scored(yes_no, pairs))
    precision, recall = metrics["precision"].value, metrics["recall"].value
    assert precision != recall
    assert metrics["f1"].value == pytest.approx(2 * precision * recall / (precision + recall))


def test_nothing_predicted_positive_gives_zero_and_a_flag():
    metrics = yes_no.aggregate(scored(yes_no, [("no", "yes"), ("no", "no")]))
    for name in ("precision", "f1"):
        assert metrics[name].value == 0
        assert metrics[name].flags == ("zero_division",)
    assert metrics["recall"].value == 0
    assert metrics["recall"].flags == ()


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
    ("text", "right"),
    [("Red.", 1), (" red ", 1), ("RED...", 1), ("red .", 1), ("red!", 0), ("a red", 0), ("", 0)],
)
def test_exact_match_forgives_case_white_space_and_trailing_periods(text, right):
    assert exact_match.score(text, sample("red")).values == {"exact_match": right}


def test_exact_match_collapses_white_space_on_both_sides():
    assert exact_match.score("a  red\nbus", sample("A red  bus.")).values == {"exact_match": 1.0}


def test_exact_match_chance_knows_the_habit_of_each_group():
    rows = scored(exact_match, [("x", "a"), ("x", "a"), ("x", "b")], group="kind")
    rows += scored(exact_match, [("x", "c"), ("x", "d")], group="name")
    assert exact_match.aggregate(rows)["exact_match"].chance == pytest.approx((2 + 1) / 5)
    assert exact_match.aggregate(rows[:3])["exact_match"].chance == pytest.approx(2 / 3)


def test_paired_error_ignores_what_both_sides_share():
    left, right = [1.0, 5.0, 9.0, 2.0], [0.0, 4.0, 8.0, 1.0]
    difference = statistics.paired_difference(left, right)
    assert difference == (1.0, 0.0, 4)
    assert statistics.mean(left).stderr > 1


def test_mean_and_its_error_by_hand():
    assert statistics.mean([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7 / 3)), 3)
    assert statistics.mean([4.0]) == (4.0, None, 1)


def test_paired_difference_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="shorter"):
        statistics.paired_difference([1.0, 2.0], [1.0])


def test_chance_levels():
    assert statistics.majority_share(["a", "b", "b", "c"]) == 0.5
    assert statistics.uniform_share([2, 4]) == 0.375
    assert statistics.proportion_stderr(0.5, 100) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean([]),
        lambda: statistics.majority_share([]),
        lambda: statistics.uniform_share([0]),
        lambda: statistics.proportion_stderr(1.5, 3),
    ],
)
def test_statistics_of_nothing_are_refused(call):
    with pytest.raises(ValueError):  # noqa: PT011 (four messages)
        call()
