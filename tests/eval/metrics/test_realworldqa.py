import pytest

from eval.metrics import realworldqa
from tests.eval.metrics.rows import sample, scored, value

LANES = ("Left lane", "Right lane", "Both")


@pytest.mark.parametrize(
    ("text", "reference", "options", "right", "lmms"),
    [
        ("B", "B", LANES, 1, 1),
        ("b.", "B", LANES, 1, 1),
        ("B. Right lane", "B", LANES, 1, 1),
        ("b. right lane", "B", LANES, 0, 0),
        ("right lane.", "B", LANES, 1, 0),
        ("the right lane", "B", LANES, 0, 0),
        ("(B)", "B", LANES, 0, 0),
        ("A", "B", LANES, 0, 0),
        ("Left lane", "B", LANES, 0, 0),
        ("Yes.", "yes", (), 1, 1),
        ("No", "yes", (), 0, 0),
        ("3", "3", (), 1, 1),
        ("three", "3", (), 0, 1),
        ("Three", "3", (), 0, 1),
        ("three.", "3", (), 0, 0),  # number words count as the whole answer alone
        ("none", "0", (), 0, 0),  # not among them, as it is in VQA accuracy
        ("none", "None", (), 1, 1),
        ("", "yes", (), 0, 0),
    ],
)
def test_the_letter_or_the_text(text, reference, options, right, lmms):
    asked = sample(reference, options=options)
    assert value(realworldqa.score(text, asked)) == right
    assert value(realworldqa.RULES["lmms"].score(text, asked)) == lmms


def test_the_share_of_right_answers():
    rows = scored(realworldqa, [("A", "A"), ("yes", "no")])
    assert realworldqa.aggregate(rows)["exact_match"].value == 0.5
