import pytest

from eval.metrics import mmmu
from tests.eval.metrics.rows import row, sample, scored

ANIMALS = ("a cat", "a dog", "an owl", "an elk")


def test_questions_with_options_are_scored_by_letter():
    asked = sample("B", options=ANIMALS)
    assert mmmu.score("(B)", asked).values == {"accuracy": 1.0}
    assert mmmu.score("(C)", asked).values == {"accuracy": 0.0}


def test_the_random_branch_is_wrong_and_flagged():
    for letter in "ABCD":
        score = mmmu.score("I do not know", sample(letter, options=ANIMALS))
        assert score.parsed is None
        assert score.values == {"accuracy": 0.0}
        assert score.flags == ("random_branch",)


def test_profiles_differ_in_the_letters_alone():
    asked = sample("B", options=ANIMALS)
    assert mmmu.RULES["llava15"].score("B. a dog", asked).flags == ("random_branch",)
    for name in ("lmms", "libmoe"):
        assert mmmu.RULES[name].score("B. a dog", asked).values == {"accuracy": 1.0}
        assert mmmu.RULES[name].score("It is 5", sample("5")).values == {"accuracy": 1.0}


def test_questions_without_options_are_open():
    score = mmmu.score("The answer is 5 apples.", sample("5"))
    assert score.parsed == "5 apples | 5.0"
    assert score.values == {"accuracy": 1.0}
    assert score.flags == ()


def test_any_of_several_references_is_right():
    assert mmmu.score("it is a truck", sample("car", "truck")).values == {"accuracy": 1.0}
    assert mmmu.score("C", sample("B", "C", options=ANIMALS)).values == {"accuracy": 1.0}


def test_accuracy_is_over_all_questions_and_chance_needs_options_in_all():
    rows = scored(mmmu, [("A", "A"), ("B", "A"), ("C", "B")], options=ANIMALS)
    assert mmmu.aggregate(rows)["accuracy"].chance == pytest.approx(2 / 3)
    rows.append(row(mmmu, "5", sample("5")))
    metric = mmmu.aggregate(rows)["accuracy"]
    assert (metric.value, metric.n, metric.chance) == (0.5, 4, None)
