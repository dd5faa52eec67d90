import pytest

from eval.metrics import mme
from tests.eval.metrics.rows import row, sample, value


@pytest.mark.parametrize(
    ("text", "official", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("NO.", "no", "no"),
        ("Yes, it is", "yes", "yes"),
        ("not", "no", "no"),
        ("nope", "no", "no"),
        ("now", "no", "no"),
        ("None", "no", "no"),
        ("snow", "no", "no"),
        ("unknown", None, None),  # "unkn"
        ("I know", None, None),  # "i kn"
        ("eyes", "yes", "yes"),
        ("oh yes", None, None),  # "oh y"
        ("no yes", "no", "no"),  # "no y"
        ("y", None, "yes"),
        ("N", None, "no"),
        ("y.", None, "yes"),
        ("n o", None, None),
        ("n.o", None, "no"),  # lmms deletes periods
        ("y.e.s", None, "yes"),
        ("...no", None, "no"),
        ("....no", None, "no"),
        (". a no", None, None),  # then " a n": white space is stripped before, not after
        ("x", None, None),
        ("", None, None),
        ("maybe", None, None),
    ],
)
def test_yes_or_no_in_the_first_four_characters(text, official, lmms):
    for rule, parsed in (("llava15", official), ("lmms", lmms)):
        score = mme.RULES[rule].score(text, sample("yes"))
        assert score.parsed == parsed
        assert value(score) == (parsed == "yes")
        assert score.flags == (() if parsed else ("unparsed",))


def answered(category, outcomes):
    """A row for each outcome, a text of two letters a picture: r is right, w wrong."""
    return [
        row(mme, "yes" if outcome == "r" else "no", sample("yes", group=category, pair=str(i)))
        for i, pair in enumerate(outcomes.split())
        for outcome in pair
    ]


def test_a_category_scores_accuracy_and_both_questions_right():
    # 5 of 8 questions, 2 of 4 pictures
    metrics = mme.aggregate(answered("count", "rr rr rw ww"))
    assert metrics["accuracy"].value == pytest.approx(5 / 8)
    assert metrics["accuracy_plus"].value == pytest.approx(2 / 4)
    assert metrics["perception"].value == pytest.approx(62.5 + 50)
    assert metrics["perception"].unit == "points"
    assert "cognition" not in metrics
    assert "libmoe_percentage" not in metrics


def test_perception_and_cognition_are_sums_over_categories_of_unequal_size():
    right = [row for name in mme.PERCEPTION for row in answered(name, "rr")]
    half = [row for name in mme.COGNITION for row in answered(name, "rr rw")]
    metrics = mme.aggregate(right + half)
    assert metrics["perception"].value == pytest.approx(2000)
    assert metrics["cognition"].value == pytest.approx(4 * (75 + 50))
    assert metrics["libmoe_percentage"].value == pytest.approx(2500 / 2800)
    assert metrics["perception"].flags == metrics["cognition"].flags == ()
    assert (metrics["perception"].n, metrics["cognition"].n) == (20, 16)
    assert metrics["accuracy_plus"].value == pytest.approx((10 + 4) / (10 + 8))


def test_libmoe_percentage_is_the_mean_percentage_of_the_14_categories():
    outcomes = ["rr", "rw", "ww", "rr ww", "rr rw"]
    categories = mme.PERCEPTION + mme.COGNITION
    rows = {name: answered(name, outcomes[i % 5]) for i, name in enumerate(categories)}
    metrics = mme.aggregate([row for part in rows.values() for row in part])
    # rr 200, rw 50, ww 0, rr ww 50+50, rr rw 75+50; the first four come three times
    total = 3 * (200 + 50 + 0 + 100) + 2 * 125
    assert metrics["libmoe_percentage"].value == pytest.approx(total / 200 / 14)
    assert metrics["perception"].value + metrics["cognition"].value == pytest.approx(total)


def test_the_same_picture_name_in_two_categories_is_two_pictures():
    rows = answered("count", "rr") + answered("color", "ww")
    assert mme.aggregate(rows)["accuracy_plus"].value == 0.5


def test_half_a_pair_counts_in_accuracy_alone_and_is_flagged():
    metrics = mme.aggregate(answered("count", "rr r"))
    assert metrics["accuracy"].value == 1
    assert (metrics["accuracy_plus"].value, metrics["accuracy_plus"].n) == (1, 1)
    assert metrics["accuracy_plus"].flags == ("incomplete_pairs",)
    assert metrics["perception"].flags == ("categories_missing", "incomplete_pairs")
    alone = mme.aggregate(answered("count", "r"))["accuracy_plus"]
    assert (alone.value, alone.n) == (0, 0)


def test_an_unknown_category_is_refused():
    with pytest.raises(
        ValueError, match=r"MME has no category \['colour'\]; its 14 are existence,"
    ):
        mme.aggregate(answered("colour", "rr"))
