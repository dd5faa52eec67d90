import pytest

from eval.metrics import mme, pope
from eval.metrics.rules import pick


def test_a_rule_is_picked_by_name():
    assert pick(pope.RULES, "lmms").aggregate is pope.aggregate_lmms
    assert pick(mme.RULES, "llava15").score is mme.score


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match="no rule is called 'llava'; there are libmoe, llava15, lm"
    ):
        pick(mme.RULES, "llava")
