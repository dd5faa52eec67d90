import pytest

from eval.metrics import relaxed_accuracy
from tests.eval.metrics.rows import sample, scored, value


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("10", "10", 1),
        ("10.5", "10", 1),  # exactly 5 percent
        ("10.51", "10", 0),  # Qwen-VL's swapped script accepts it
        ("9.5", "10", 1),  # and refuses this one
        ("9.49", "10", 0),
        ("-10.5", "-10", 1),
        ("10", "-10", 0),
        ("12%", "12", 0),  # 0.12
        ("12%", "0.12", 1),
        ("12%", "12%", 1),
        ("0.125", "12%", 1),
        ("12", "12%", 0),
        ("12 %", "0.12", 1),
        ("5%%", "0.05", 1),  # all of them are stripped, once divided
        ("1,000", "1000", 0),  # no float
        ("1,000", "1,000", 1),  # but an equal text
        ("1e3", "1000", 1),
        ("1_000", "1000", 1),  # Python's float reads it
        ("0", "0", 1),  # a zero is compared as text
        ("0.0", "0", 0),
        ("0.0001", "0", 0),
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("red", "Red ", 0),  # the reference is taken as it is
        (" red ", "Red", 1),  # the answer is stripped beforehand
        ("$5", "5", 0),
        ("10", "ten", 0),
        ("", "", 1),
        ("%", "%", 1),
        ("nan", "nan", 0),  # a number that equals nothing
        ("inf", "inf", 0),
        ("1e999", "5", 0),
    ],
)
def test_five_percent_of_the_reference_else_the_same_text(text, reference, right):
    assert value(relaxed_accuracy.score(text, sample(reference))) == right


def test_any_reference_may_be_met():
    assert value(relaxed_accuracy.score("21", sample("10", "20"))) == 1


def test_the_share_of_right_answers():
    rows = scored(relaxed_accuracy, [("10", "10"), ("11", "10"), ("a", "A"), ("b", "c")])
    metric = relaxed_accuracy.aggregate(rows)["relaxed_accuracy"]
    assert (metric.value, metric.n, metric.stderr) == (0.5, 4, 0.25)
