import pytest

from eval.metrics.letters import letter_score, offered
from tests.eval.metrics.rows import sample


@pytest.mark.parametrize(
    ("options", "letters"), [("", ""), ("wx", "AB"), ("0123456789", "ABCDEFGHIJ")]
)
def test_letters_of_options(options, letters):
    assert offered(sample("A", options=options)) == letters


@pytest.mark.parametrize(
    ("parsed", "options", "accuracy", "flags"),
    [
        ("A", "wx", 1, ()),
        ("B", "wx", 0, ()),
        ("C", "wx", 0, ("not_offered",)),
        (None, "wx", 0, ("unparsed",)),
        ("C", "", 0, ()),  # nobody knows what is offered
    ],
)
def test_a_letter_is_right_wrong_absent_or_not_offered(parsed, options, accuracy, flags):
    score = letter_score(parsed, sample("A", options=options))
    assert (score.values, score.flags) == ({"accuracy": accuracy}, flags)
