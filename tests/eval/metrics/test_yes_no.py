import math

import pytest

from eval.metrics import yes_no
from tests.eval.metrics.rows import sample, scored


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
