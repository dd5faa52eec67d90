import itertools
import math
import re
from collections import Counter

import pytest

from llava_compete.moe import CompetitionSchedule

STEPS = 20_000


def make_schedule(num_layers=28, rate=0.07, max_layers=3, warmup_steps=0, seed=0):
    return CompetitionSchedule(
        num_layers, rate=rate, max_layers=max_layers, warmup_steps=warmup_steps, seed=seed
    )


def draw(schedule, steps=STEPS):
    return [schedule.competing(step) for step in range(steps)]


def test_decisions_are_a_function_of_seed_and_step_alone():
    first, second = make_schedule(), make_schedule()
    forward = draw(first, 200)
    backward = [second.competing(step) for step in reversed(range(200))][::-1]
    assert forward == backward
    assert forward == draw(first, 200)
    assert forward != draw(make_schedule(seed=1), 200)


def test_a_longer_run_and_a_resumed_run_repeat_the_same_decisions():
    whole = draw(make_schedule(), 300)
    assert draw(make_schedule(), 100) == whole[:100]
    resumed = make_schedule()
    assert [resumed.competing(step) for step in range(100, 300)] == whole[100:]


def test_warm_up_is_silent_and_moves_no_later_decision():
    warm, cold = make_schedule(rate=0.1, warmup_steps=50), make_schedule(rate=0.1)
    assert not any(any(flags) for flags in draw(warm, 50))
    assert [warm.competing(step) for step in range(50, 250)] == draw(cold, 250)[50:]
    assert any(any(flags) for flags in draw(cold, 50))


def test_one_flag_a_layer_and_never_more_than_the_cap():
    counts = [sum(flags) for flags in draw(make_schedule(max_layers=3), 5000)]
    assert max(counts) == 3
    assert all(len(flags) == 28 for flags in draw(make_schedule(), 10))


@pytest.mark.parametrize(
    ("num_layers", "rate", "max_layers"),
    [
        pytest.param(28, 0.07, 3, id="biting cap"),
        pytest.param(28, 0.1, 3, id="cap just above the mean"),
        pytest.param(8, 0.2, 8, id="no cap"),
        pytest.param(2, 0.05, 1, id="two layers"),
    ],
)
def test_every_layer_competes_at_the_configured_rate(num_layers, rate, max_layers):
    flags = draw(make_schedule(num_layers, rate, max_layers))
    sigma = math.sqrt(rate * (1 - rate) / STEPS)
    for layer in range(num_layers):
        found = sum(step[layer] for step in flags) / STEPS
        assert abs(found - rate) < 4 * sigma, f"layer {layer}: {found} for {rate}"


def test_counts_are_binomial_where_the_cap_cannot_bite():
    num_layers, rate = 6, 0.3
    counts = Counter(sum(flags) for flags in draw(make_schedule(num_layers, rate, num_layers)))
    for count in range(num_layers + 1):
        expected = math.comb(num_layers, count) * rate**count * (1 - rate) ** (num_layers - count)
        sigma = math.sqrt(expected * (1 - expected) / STEPS)
        assert abs(counts[count] / STEPS - expected) < 4 * sigma, f"{count} layers"


def test_layers_compete_independently_where_the_cap_cannot_bite():
    flags = draw(make_schedule(4, 0.3, 4))
    together = sum(step[0] and step[3] for step in flags) / STEPS
    assert abs(together - 0.09) < 4 * math.sqrt(0.09 * 0.91 / STEPS)


def test_neighbouring_steps_are_independent():
    flags = draw(make_schedule(4, 0.3, 4))
    twice = sum(a[0] and b[0] for a, b in itertools.pairwise(flags)) / STEPS
    assert abs(twice - 0.09) < 5 * math.sqrt(0.09 * 0.91 / STEPS)


def test_a_rate_the_cap_makes_impossible_is_refused_with_the_numbers():
    message = (
        "competition rate=0.2 of 28 layers needs 5.6 competing layers a step on average, but "
        "max_layers=3 caps them: raise max_layers to at least 6 or lower the rate to at most "
        "0.1071"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_schedule(rate=0.2)
    make_schedule(rate=0.2, max_layers=6)
    make_schedule(rate=0.1071)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=f"competition rate={rate} must be between 0 and 1"):
        make_schedule(rate=rate)


def test_negative_cap_and_warm_up_are_refused():
    with pytest.raises(ValueError, match="max_layers=-1"):
        make_schedule(max_layers=-1, rate=0.0)
    with pytest.raises(ValueError, match="warmup_steps=-5"):
        make_schedule(warmup_steps=-5)


@pytest.mark.parametrize("max_layers", [0, 3])
def test_rate_zero_never_competes(max_layers):
    assert not any(
        any(flags) for flags in draw(make_schedule(rate=0.0, max_layers=max_layers), 500)
    )


def test_rate_one_always_competes_everywhere():
    assert all(all(flags) for flags in draw(make_schedule(5, 1.0, 5), 500))
    assert all(all(flags) for flags in draw(make_schedule(5, 1.0, 99), 500))


def test_a_rate_that_just_fills_the_cap_always_takes_as_many_layers_as_it_allows():
    flags = draw(make_schedule(28, 3 / 28, 3), 5000)
    assert {sum(step) for step in flags} == {3}
    assert all(any(step[layer] for step in flags) for layer in range(28))


def test_a_model_without_experts_has_an_empty_schedule():
    assert make_schedule(0, 0.07, 3).competing(5) == ()
