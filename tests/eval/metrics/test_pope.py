import pytest

from eval.metrics import pope
from eval.metrics.pope import RULES
from tests.eval.metrics.rows import sample, scored, value

# Of 10 in each category: hits, false alarms, misses, correct rejections.
COUNTS = {"random": (5, 0, 0, 5), "popular": (4, 2, 1, 3), "adversarial": (3, 1, 2, 4)}


@pytest.fixture
def rows():
    return [
        row
        for category, (hits, alarms, misses, rejections) in COUNTS.items()
        for row in scored(
            pope,
            [("Yes", "yes")] * hits
            + [("Yes.", "no")] * alarms
            + [("No, not at all", "yes")] * misses
            + [("no", "no")] * rejections,
            group=category,
        )
    ]


def test_accuracy_precision_recall_f1_and_the_ratio_of_predictions(rows):
    metrics = pope.aggregate(rows)
    # 12 hits, 3 false alarms, 3 misses, 12 correct rejections
    assert metrics["accuracy"].value == pytest.approx(24 / 30)
    assert metrics["precision"].value == pytest.approx(12 / 15)
    assert metrics["recall"].value == pytest.approx(12 / 15)
    assert metrics["f1"].value == pytest.approx(0.8)
    assert metrics["yes_ratio"].value == pytest.approx(15 / 30)


@pytest.mark.parametrize(
    ("category", "accuracy", "precision", "recall", "f1", "yes_ratio"),
    [
        ("random", 1, 1, 1, 1, 0.5),
        ("popular", 0.7, 4 / 6, 4 / 5, 8 / 11, 0.6),
        ("adversarial", 0.7, 3 / 4, 3 / 5, 6 / 9, 0.4),
    ],
)
def test_each_category_has_its_own(rows, category, accuracy, precision, recall, f1, yes_ratio):
    metrics = pope.aggregate([row for row in rows if row.sample.group == category])
    expected = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    for name, number in (expected | {"yes_ratio": yes_ratio, "f1_mean": f1}).items():
        assert metrics[name].value == pytest.approx(number), name


def test_the_means_are_over_categories(rows):
    metrics = pope.aggregate(rows)
    assert metrics["f1_mean"].value == pytest.approx((1 + 8 / 11 + 6 / 9) / 3)
    assert metrics["accuracy_mean"].value == pytest.approx((1 + 0.7 + 0.7) / 3)
    assert metrics["f1_mean"].n == metrics["accuracy_mean"].n == 30


def test_nothing_predicted_positive_is_zero_with_a_flag():
    metrics = pope.aggregate(scored(pope, [("no", "yes"), ("no", "no")], group="random"))
    for name in ("precision", "f1", "f1_mean"):
        assert metrics[name].value == 0
        assert metrics[name].flags == ("zero_division",)
    assert metrics["yes_ratio"].value == 0


@pytest.mark.parametrize(
    ("text", "official", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("yes", "yes", "yes"),
        ("YES", "yes", "yes"),
        ("Yes.", "yes", None),
        ("Yes, it is", "yes", None),
        ("No", "no", "no"),
        ("NO", "yes", "no"),
        ("No.", "no", None),
        ("nope", "yes", None),
        ("", "yes", None),
    ],
)
def test_lmms_takes_the_bare_word_alone(text, official, lmms):
    asked = sample("yes")
    assert pope.score(text, asked).parsed == official
    score = RULES["lmms"].score(text, asked)
    assert score.parsed == lmms
    assert value(score) == (lmms == "yes")
    assert score.flags == (() if lmms else ("unparsed",))


def test_lmms_counts_what_is_neither_in_accuracy_alone():
    rule = RULES["lmms"]
    pairs = [("yes", "yes"), ("Yes.", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no")]
    metrics = rule.aggregate(scored(rule, pairs, group="random"))
    assert metrics["accuracy"].value == pytest.approx(2 / 5)
    assert metrics["precision"].value == pytest.approx(1 / 2)
    assert metrics["recall"].value == pytest.approx(1 / 2)  # "Yes." is no miss
    assert metrics["f1"].value == pytest.approx(1 / 2)
    assert metrics["label_yes_ratio"].value == pytest.approx(3 / 5)
    assert "yes_ratio" not in metrics
    nothing = rule.aggregate(scored(rule, [("no", "yes"), ("maybe", "no")], group="random"))
    assert nothing["precision"].flags == nothing["f1"].flags == ("zero_division",)
    assert nothing["f1"].value == 0
