import pytest

from eval.metrics import hallusion
from tests.eval.metrics.rows import row, sample, value


@pytest.mark.parametrize(
    ("text", "parsed", "flags"),
    [
        ("Yes.", "yes", ()),
        ("YES", "yes", ()),
        ("No, but yes in a way", "yes", ()),  # yes anywhere
        ("his eyes", "yes", ()),
        ("No.", "no", ()),
        ("It is not", "no", ()),
        ("unknown", "no", ("no_by_default",)),
        ("", "no", ("no_by_default",)),
        ("I cannot tell", "no", ("no_by_default",)),
    ],
)
def test_yes_is_what_has_a_yes_in_it(text, parsed, flags):
    score = hallusion.score(text, sample("no"))
    assert (score.parsed, score.flags) == (parsed, flags)
    assert value(score) == (parsed == "no")


def asked(right, category="VD", subcategory="chart", set_id=0, figure_id=0, question_id=0):
    meta = {"category": category, "subcategory": subcategory, "set_id": set_id}
    where = meta | {"figure_id": figure_id, "question_id": question_id}
    return row(hallusion, "yes" if right else "no", sample("yes", **where))


def test_questions_figures_and_answers():
    # two questions about two figures of one set, and one question of another set
    rows = [
        asked(True, figure_id=0, question_id=0),
        asked(True, figure_id=1, question_id=0),
        asked(True, figure_id=0, question_id=1),
        asked(False, figure_id=1, question_id=1),
        asked(False, set_id=1),
    ]
    metrics = hallusion.aggregate(rows)
    assert metrics["aAcc_string_rule"].value == pytest.approx(3 / 5)
    assert metrics["qAcc_string_rule"].value == pytest.approx(1 / 3)  # question 0 of set 0
    assert metrics["fAcc_string_rule"].value == pytest.approx(1 / 3)  # figure 0 of set 0
    assert metrics["qAcc_string_rule"].n == metrics["fAcc_string_rule"].n == 3


@pytest.mark.parametrize("other", [{"category": "VS"}, {"subcategory": "map"}, {"set_id": "1"}])
def test_the_same_numbers_elsewhere_are_another_question(other):
    rows = [asked(True, figure_id=1), asked(False, figure_id=1, **other)]
    assert hallusion.aggregate(rows)["qAcc_string_rule"].value == 0.5
    assert hallusion.aggregate(rows)["fAcc_string_rule"].value == 0.5


def test_a_supplement_question_without_a_figure_is_in_no_figure():
    rows = [asked(False, category="VS", figure_id="0"), asked(True, category="VS", figure_id="1")]
    metrics = hallusion.aggregate(rows)
    assert metrics["qAcc_string_rule"].value == 0
    assert (metrics["fAcc_string_rule"].value, metrics["fAcc_string_rule"].n) == (1, 1)
    assert "fAcc_string_rule" not in hallusion.aggregate(rows[:1])
    assert hallusion.aggregate([asked(True, figure_id=0)])["fAcc_string_rule"].value == 1


def test_every_name_says_that_it_is_the_string_rule():
    assert all(name.endswith("_string_rule") for name in hallusion.aggregate([asked(True)]))
