import pytest

from eval.metrics import ocrbench
from tests.eval.metrics.rows import row, sample, scored, value


@pytest.mark.parametrize(
    ("text", "references", "right"),
    [
        ("CENTRE", ["centre"], 1),
        ("It says Centre.", ["CENTRE"], 1),
        ("centrepiece", ["centre"], 1),  # contained
        ("cent", ["centre"], 0),
        ("c e n t r e", ["centre"], 0),
        ("two\nlines", ["two lines"], 1),
        ("two lines", [" Two\nlines "], 1),
        ("two  lines", ["two lines"], 0),
        ("x", ["a", "x"], 1),
        ("", ["x"], 0),
    ],
)
def test_contained_in_any_case(text, references, right):
    assert value(ocrbench.score(text, sample(*references, dataset="IIIT5K"))) == right


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        (r"\frac { a } { b }", r"\frac{a}{b}", 1),
        (r"\frac{a}{b}", r"\frac { a } { b }", 1),
        ("x = A", "x=a", 0),  # case is kept
        ("x\n= A", "x=A", 1),
        ("so x = A + 1", "x=A", 1),
        ("x\t=A", "x=A", 0),
    ],
)
def test_formulas_drop_spaces_and_keep_case(text, reference, right):
    assert value(ocrbench.score(text, sample(reference, dataset="HME100k"))) == right


def test_lmms_reads_full_width_ascii():
    narrow, wide = "A1!~", "\uff21\uff11\uff01\uff5e"
    for text, reference in ((wide, narrow), (narrow, wide)):
        asked = sample(reference, dataset="ReCTS")
        assert value(ocrbench.score(text, asked)) == 0
        assert value(ocrbench.RULES["lmms"].score(text, asked)) == 1


def test_the_score_is_the_number_of_right_answers():
    rows = scored(ocrbench, [("a", "a"), ("b", "a"), ("ba", "a")], dataset="svt")
    rows.append(row(ocrbench, "x = y", sample("x=y", dataset="HME100k")))
    metrics = ocrbench.aggregate(rows)
    assert (metrics["score"].value, metrics["score"].n, metrics["score"].unit) == (3, 4, "points")
    assert metrics["accuracy"].value == 0.75
