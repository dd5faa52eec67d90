import pytest

from eval.metrics import anls
from tests.eval.metrics.rows import row, sample, value


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("abcd", ["abcd"], 1),
        ("ABCD", ["abcd"], 1),
        ("abce", ["abcd"], 3 / 4),
        ("abxy", ["abcd"], 0.5),  # exactly 0.5 is kept
        ("axyz", ["abcd"], 0),  # 0.25 is below it
        ("abxyz", ["abcde"], 0),  # 0.4
        ("", ["abcd"], 0),
        ("abcd", [""], 0),
        ("", [""], 1),
        ("abcd", ["wxyz", "abcx", "abcd"], 1),  # the best reference
        ("abcd", ["wxyz", "abxy"], 0.5),
        # white space is collapsed for the distance, not for the length
        ("a  b", ["a b"], 1),
        ("a      x", ["a b"], 1 - 1 / 8),
        ("  ax  ", ["ab"], 0.5),  # the answer itself is stripped beforehand
        ("ax", ["  ab  "], 1 - 1 / 6),
        ("a\nb", ["a b"], 1),
        # lengths are those of the upper case: STRASSE has seven letters
        ("straße", ["strasse"], 1 - 2 / 7),
        ("ß", ["x"], 0.5),
    ],
)
def test_similarity_to_the_nearest_reference(text, references, expected):
    assert value(anls.score(text, sample(*references))) == pytest.approx(expected)


def test_the_mean_over_questions():
    rows = [row(anls, text, sample("abcd")) for text in ("abcd", "abxy", "zzzz")]
    assert anls.aggregate(rows)["anls"].value == pytest.approx(0.5)
