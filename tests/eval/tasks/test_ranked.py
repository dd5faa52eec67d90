"""Benchmarks whose options can be ranked: by their rules one letter of each question is right."""

import pytest

from eval.options import as_asked, candidates, reply_of
from eval.task import load_task
from tests.eval.tasks import choices, judged

LAYOUTS = {name: choices.LAYOUTS[name][-1] for name in choices.LAYOUTS if name != "mmstar"}
LAYOUTS["mathvista"] = judged.mathvista_hub
WITH_OPEN_QUESTIONS = ("mmmu", "realworldqa", "mathvista")
RANKED = {"rank_options": True}


@pytest.mark.parametrize("profile", ["llava15", "lmms", "libmoe"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_one_letter_of_each_question_is_right(name, profile, tmp_path):
    LAYOUTS[name](tmp_path)
    task = as_asked(load_task(name, tmp_path, profile), RANKED)
    ranked = [sample for sample in task.samples if candidates(task, sample)]
    assert (len(ranked) < len(task.samples)) == (name in WITH_OPEN_QUESTIONS)
    assert ranked
    for sample in ranked:
        letters = candidates(task, sample)
        right = []
        for place, letter in enumerate(letters):
            losses = [float(n != place) for n in range(len(letters))]
            text = reply_of(sample, losses)["text"]
            assert text == letter
            score = task.score(text, sample)
            assert score.flags == ()
            if set(score.values.values()) == {1.0}:
                right.append((letter, sample.options[place]))
        assert len(right) == 1
        assert sample.references[0] in right[0]


def test_options_inside_a_question_are_not_taken_apart(tmp_path):
    choices.LAYOUTS["mmstar"][-1](tmp_path)
    with pytest.raises(ValueError, match="task mmstar has no sample with options"):
        as_asked(load_task("mmstar", tmp_path), RANKED)


@pytest.mark.parametrize("name", ["pope", "mme", "hallusionbench"])
def test_questions_of_yes_and_no_have_no_options(name, tmp_path):
    judged.BOTH[name][-1](tmp_path)
    with pytest.raises(ValueError, match=f"task {name} has no sample with options"):
        as_asked(load_task(name, tmp_path), RANKED)
