import pytest

from eval.metrics import seed
from tests.eval.metrics.rows import sample, scored

OPTIONS = ("cat", "dog", "owl", "elk")


@pytest.mark.parametrize(
    ("text", "exact", "first"),
    [
        ("B", "B", "B"),
        (" B\n", "B", "B"),
        ("b", None, "B"),
        ("B.", None, "B"),
        ("B. dog", None, "B"),
        ("banana", None, "B"),
        ("(B)", None, None),
        ("The answer is B", None, None),
        ("E", None, None),
        ("AB", None, "A"),
        ("", None, None),
    ],
)
def test_the_letter_alone_or_the_first_character(text, exact, first):
    asked = sample("B", options=OPTIONS)
    assert seed.score(text, asked).parsed == exact
    score = seed.RULES["lmms"].score(text, asked)
    assert score.parsed == first
    assert score.values == {"accuracy": float(first == "B")}
    assert score.flags == (() if first else ("unparsed",))


def test_accuracy_over_all():
    rows = scored(seed, [("A", "A"), ("B", "A"), ("b", "B")], options=OPTIONS)
    assert seed.aggregate(rows)["accuracy"].value == pytest.approx(1 / 3)
