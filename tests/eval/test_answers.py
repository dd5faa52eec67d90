import re

import pytest

from eval import unscored
from eval.answers import Judged, choose, galleries, sample_value
from eval.metrics import mmbench, mme, mmstar, ocrbench, pope
from eval.task import Sample, Task, load_task
from llava_compete.report.blocks import Gallery, Heading, Paragraph
from llava_compete.report.html import to_html


def judged(id, right, image=None):
    return Judged({"id": id, "images": [image or f"{id}.png"]}, "accuracy", right)


def test_the_choice_of_samples_does_not_hang_on_their_order():
    answers = [judged(f"s{i}", i % 3 == 0) for i in range(30)]
    assert choose(answers, "t", 6) == choose(answers[::-1], "t", 6)
    assert [one.right for one in choose(answers, "t", 6)] == [True, False] * 3
    assert choose(answers, "t", 6) != choose(answers, "u", 6)


@pytest.mark.parametrize(
    ("rights", "chosen"),
    [
        ([True] * 9, [True] * 4),
        ([False] * 9, [False] * 4),
        ([True] * 8 + [False], [True, False, True, True]),
        ([False, True], [True, False]),
        ([], []),
    ],
)
def test_where_one_kind_is_short_the_other_fills_up_and_no_sample_comes_twice(rights, chosen):
    found = choose([judged(f"s{i}", right) for i, right in enumerate(rights)], "t", 4)
    assert [one.right for one in found] == chosen
    assert len({one.row["id"] for one in found}) == len(found)


def test_a_picture_comes_again_only_when_no_other_is_left():
    answers = [judged(f"s{i}", True, f"{i % 2}.png") for i in range(8)]
    found = choose(answers, "t", 3)
    assert len({one.row["images"][0] for one in found[:2]}) == 2
    assert len(found) == 3


@pytest.mark.parametrize(
    ("values", "headline", "name"),
    [
        ({"anls": 0.5}, "anls", "anls"),
        ({"answer_loss": 1.0, "exact_match": 1.0}, "exact_match", "exact_match"),
        ({"accuracy": 1.0}, "f1_mean", "accuracy"),
        ({"answer_loss": 1.0, "row_accuracy": 1.0}, "circular_accuracy", "row_accuracy"),
        ({}, "score", None),
        ({"answer_loss": 1.0}, "score", None),
    ],
)
def test_a_sample_is_judged_by_the_headline_or_what_the_rule_gives_each(values, headline, name):
    assert sample_value(values, headline) == name


def benchmark(module, headline, root, references, *, unscored_by="", **more):
    images = sorted((root / "pictures").iterdir())
    samples = tuple(
        Sample(
            f"s{i}",
            "Is it?",
            (reference,),
            (images[i],),
            meta={name: values[i] for name, values in more.get("meta", {}).items()},
            group=more.get("groups", "xxxx")[i],
            options=more.get("options", ()),
        )
        for i, reference in enumerate(references)
    )
    return Task(
        name="bench",
        version=1,
        description="",
        samples=samples,
        score=module.score,
        aggregate=module.aggregate,
        headline=headline,
        max_new_tokens=4,
        unscored=unscored_by,
    )


YES, LETTERS = ("yes", "yes", "no", "no"), ("A", "A", "B", "B")
OPTIONS = ("one", "two")
CASES = {
    "pope": (pope, "f1_mean", YES, {"groups": ("random", "random", "popular", "popular")}),
    "mme": (mme, "perception", YES, {"groups": ("color",) * 4, "meta": {"pair": (1, 2, 1, 2)}}),
    "mmbench": (
        *(mmbench, "circular_accuracy", LETTERS),
        {"options": OPTIONS, "meta": {"index": (1, 2, 1_000_001, 1_000_002)}},
    ),
    "mmstar": (
        *(mmstar, "l2_mean", LETTERS),
        {"options": OPTIONS, "meta": {"l2_category": ("a", "b", "a", "b")}},
    ),
    "ocrbench": (ocrbench, "score", YES, {"meta": {"dataset": ("x",) * 4}}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_headline_that_no_single_answer_has_still_has_right_and_wrong_cards(
    name, data_root, run_directory
):
    module, headline, references, more = CASES[name]
    task = benchmark(module, headline, data_root, references, **more)
    # The first word of each two is right where all get the same reply.
    run = run_directory("run", [task], lambda sample: references[0])
    blocks = list(galleries("p", run, None))
    cards = next(block for block in blocks if isinstance(block, Gallery)).cards
    verdicts = {card.source.removeprefix("bench "): card.right for card in cards}
    assert verdicts == {"s0": True, "s1": True, "s2": False, "s3": False}
    value = next(block.text for block in blocks if isinstance(block, Paragraph))
    assert re.fullmatch(r"Right is an answer whose (row_)?accuracy is 0.5 or more.", value)


def test_each_task_has_cards_and_says_what_it_is_of(data_root, run_directory):
    tasks = [load_task(f"stamps_{name}", data_root) for name in ("yesno", "choice")]
    run = run_directory("run", tasks, lambda s: "Yes" if "Is" in s.prompt else "A", limit=3)
    blocks = list(galleries("p", run, None))
    assert [block.text for block in blocks if isinstance(block, Heading)] == [
        "stamps_choice, LIMITED to 3",
        "stamps_yesno, LIMITED to 3",
    ]
    galleries_of = [block for block in blocks if isinstance(block, Gallery)]
    assert [{card.right for card in block.cards} for block in galleries_of] == [{True, False}] * 2
    names = [card.name for block in galleries_of for card in block.cards]
    assert names[0] == "p-stamps_choice-1.png"
    assert len(set(names)) == 6
    assert to_html(blocks).count('class="badge') == 6


def test_answers_that_a_judge_scores_get_no_verdict(data_root, run_directory):
    task = benchmark(unscored, "score", data_root, YES, unscored_by="GPT-4 scores it")
    blocks = list(galleries("p", run_directory("run", [task], lambda s: "Yes"), None))
    assert [block.text for block in blocks] == [
        "bench, UNSCORED",
        "Neither right nor wrong here, GPT-4 scores it.",
    ]


def test_a_task_without_an_answer_says_so(data_root, run_directory):
    task = load_task("stamps_yesno", data_root)
    blocks = list(galleries("p", run_directory("run", [task], lambda sample: None), None))
    assert [block.text for block in blocks] == [
        "stamps_yesno, INCOMPLETE",
        "No answer to a question with a picture.",
    ]
