"""Whatever a model says, a rule gives a number between 0 and 1 and raises nothing."""

import importlib
import pkgutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import metrics
from eval.metrics.rules import Rule
from eval.task import Scored
from tests.eval.metrics.rows import sample

OPTIONS = ("a cat", "a dog", "an owl", "an elk")
PROBLEM = {"question_type": "free_form", "answer_type": "float", "precision": 2}
PLACE = {"category": "VS", "subcategory": "map", "set_id": 0, "figure_id": 1, "question_id": 0}
SAMPLES = {
    "ai2d": [sample("B", options=OPTIONS)],
    "anls": [sample("a dog", "dogs")],
    "choice": [sample("B", options=OPTIONS)],
    "exact_match": [sample("dog")],
    "gqa": [sample("dog")],
    "hallusion": [sample("yes", **PLACE), sample("no", **PLACE | {"figure_id": 0})],
    "mathvista": [
        sample("12.0", **PROBLEM),
        sample("12", **PROBLEM | {"answer_type": "integer"}),
        sample("[1, 2]", **PROBLEM | {"answer_type": "list"}),
        sample("a dog", options=OPTIONS, **PROBLEM | {"question_type": "multi_choice"}),
    ],
    "mmbench": [sample("B", options=OPTIONS, index=1_000_007)],
    "mme": [sample("no", group="OCR", pair="1"), sample("yes", group="code_reasoning", pair="1")],
    "mme_realworld": [
        sample("B", options=OPTIONS, task=task) for task in ("Perception", "Reasoning")
    ],
    "mmmu": [sample("B", options=OPTIONS), sample("12"), sample("a"), sample("Paris", "1e3")],
    "mmstar": [sample("B", options=OPTIONS, l2_category="geometry")],
    "ocrbench": [sample("dog", dataset="svt"), sample("x=1", dataset="HME100k")],
    "pope": [sample("yes", group="random"), sample("no", group="popular")],
    "realworldqa": [sample("B", options=OPTIONS), sample("12")],
    "relaxed_accuracy": [sample("12"), sample("0"), sample("12%"), sample("nan"), sample("1e308")],
    "seed": [sample("B", options=OPTIONS)],
    "vqa_accuracy": [sample(*["dog"] * 10), sample(*["a dog", "2", "1,5", "don't", "?"] * 2)],
    "yes_no": [sample("yes")],
}
MOST = {"perception": 2000, "cognition": 800}  # points; else one a row
PIECES = (
    "A|B.|(C)|(d)|E|yes|No|not|a dog|the answer is |The answer is |option |is |so |=|\n|\t| |.|,|?"
    "|'s|\"|[|]|\\|12|12.0|1,000|-3e5|1e999|.5|%|nan|inf|\u00df|\u0130|\uff11|\u0663|\x00|\ud800"
)
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(PIECES.split("|")), max_size=12).map("".join)
)


def rules():
    for found in pkgutil.iter_modules(metrics.__path__):
        module = importlib.import_module(f"eval.metrics.{found.name}")
        if hasattr(module, "RULES"):
            yield from (
                pytest.param(found.name, rule, id=f"{found.name}-{name}")
                for name, rule in module.RULES.items()
            )
        elif hasattr(module, "score"):
            rule = Rule(module.score, module.aggregate)
            yield pytest.param(found.name, rule, id=found.name)


@pytest.mark.parametrize(("name", "rule"), list(rules()))
@settings(derandomize=True, max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_no_text_is_too_odd_for_a_rule(name, rule, texts):
    rows = []
    for asked in SAMPLES[name]:
        for text in texts:
            score = rule.score(text, asked)
            assert score == rule.score(text, asked)
            assert all(0 <= number <= 1 for number in score.values.values())
            rows.append(Scored(asked, score))
    whole = rule.aggregate(rows)
    for part in (rows[:1], rows[-1:], rows[::2]):
        assert rule.aggregate(part).keys() <= whole.keys()
    for metric, summed in whole.items():
        most = MOST.get(metric, len(rows)) if summed.unit == "points" else 1
        assert 0 <= summed.value <= most, metric
        assert summed.chance is None or 0 <= summed.chance <= 1
        assert summed.n <= len(rows)


def test_modules_with_a_default_have_it_among_their_rules():
    for found in pkgutil.iter_modules(metrics.__path__):
        module = importlib.import_module(f"eval.metrics.{found.name}")
        if hasattr(module, "RULES"):
            assert module.score in [rule.score for rule in module.RULES.values()]


@pytest.mark.parametrize("name", ["llava15", "lmms", "libmoe"])
def test_a_module_that_knows_one_profile_knows_all(name):
    for found in pkgutil.iter_modules(metrics.__path__):
        module = importlib.import_module(f"eval.metrics.{found.name}")
        if "lmms" in getattr(module, "RULES", {}):
            assert name in module.RULES, found.name
