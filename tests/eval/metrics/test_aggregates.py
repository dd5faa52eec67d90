import pytest

from eval.metrics import aggregates
from eval.task import Sample, Score, Scored


def rows_of(values, name="x", options=(), references=None):
    references = references or ["A"] * len(values)
    return [
        Scored(
            Sample(str(i), "?", (reference,), options=tuple(options), group=("even", "odd")[i % 2]),
            Score(None, {name: value}),
        )
        for i, (value, reference) in enumerate(zip(values, references, strict=True))
    ]


def test_a_share_and_its_error():
    metric = aggregates.share(rows_of([1.0, 1.0, 0.0, 1.0]), "x", chance=0.25)
    assert (metric.value, metric.n, metric.chance) == (0.75, 4, 0.25)
    assert metric.stderr == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_an_average_and_its_error():
    metric = aggregates.average(rows_of([0.0, 0.3, 0.9]), "x")
    assert metric.value == pytest.approx(0.4)
    assert metric.stderr == pytest.approx((0.21 / 3) ** 0.5)
    assert aggregates.average(rows_of([0.5]), "x").stderr is None


def test_chance_is_guessing_or_the_commonest_letter_and_unknown_without_options():
    assert aggregates.choice_chance(rows_of([1.0] * 4, references="ABCD", options="wxyz")) == 0.25
    assert aggregates.choice_chance(rows_of([1.0] * 4, references="AAAB", options="wxyz")) == 0.75
    assert aggregates.choice_chance(rows_of([1.0] * 4)) is None


def test_parts_keep_the_order_of_their_first_rows():
    parts = aggregates.parts(rows_of([1.0, 0.0, 1.0]), lambda sample: sample.group)
    assert [(key, len(rows)) for key, rows in parts.items()] == [("even", 2), ("odd", 1)]
    assert aggregates.all_right(parts["even"], "x")
    assert not aggregates.all_right(parts["odd"], "x")
