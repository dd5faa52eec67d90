"""Choice by likelihood without a model: what is asked, in which batches, stored and scored."""

import json
from dataclasses import replace

import pytest

from eval.inference import describe, mark
from eval.metrics import exact_match, mmmu
from eval.options import as_asked, candidates, reply_of
from eval.plan import plan
from eval.predict import TooLargeError, predict, unanswered
from eval.ranks import Rank
from eval.score import sample_line, score_samples, task_results
from eval.store import read_predictions
from eval.task import Sample, Task, load_task

RANKED = {"rank_options": True}


@pytest.fixture
def words(data_root):
    return load_task("stamps_choice", data_root)


@pytest.fixture
def letters(words):
    return as_asked(words, RANKED)


def ask(model, task, out, **more):
    requests = plan(task, "f", shuffled_control=True)
    predict(model, task, requests, out, **more)
    return score_samples(task, requests, read_predictions(out, task.name))


def mixed():
    """Like MMMU: questions with two to ten options, and one of three open."""
    samples = []
    for number in range(24):
        options = () if number % 3 == 0 else tuple(f"text {n}" for n in range(2 + number % 9))
        answer = "BCABDE"[number % 2] if options else "seven"
        samples.append(Sample(str(number), f"{'?' * number}", (answer,), (), options))
    return Task(
        name="mixed",
        version=1,
        description="made up",
        samples=tuple(samples),
        score=mmmu.score,
        aggregate=mmmu.aggregate,
        headline="accuracy",
        max_new_tokens=4,
    )


def right(sample):
    return sample.references[0]


def test_candidates_are_letters_texts_or_none(words, letters):
    (sample, *_) = words.samples
    assert candidates(words, sample) == ()
    assert candidates(letters, sample) == ("A", "B", "C", "D")
    assert candidates(replace(words, ranked="texts"), sample) == ("red", "blue", "green", "grey")
    assert "lowest loss" in letters.description
    assert as_asked(words, {}) is words
    texts = replace(words, ranked="texts")
    assert as_asked(texts, RANKED) is texts


@pytest.mark.parametrize(
    ("losses", "letter", "tie"),
    [
        ([3.0, 1.0, 2.0], "B", False),
        ([1.0, 1.0, 2.0], "A", True),
        ([2.0, 1.000001, 1.0], "B", True),
        ([2.0, 1.0001, 1.0], "C", False),
        ([1.0, 2.0, 2.0], "A", False),
        ([0.5], "A", False),
    ],
)
def test_the_lowest_loss_is_the_answer_and_the_first_of_those_alike(losses, letter, tie):
    sample = Sample("s", "?", ("A",), (), tuple("xyz"[: len(losses)]))
    wanted = {"text": letter, "losses": losses, "tie": tie, "tokens": 0, "finished": True}
    assert reply_of(sample, losses) == wanted


def test_ranked_answers_are_scored_by_the_tasks_own_rule(letters, tmp_path, fake_model):
    rows = ask(fake_model(lambda s: "B" if s.id == "red-choice" else right(s)), letters, tmp_path)
    results = task_results(letters, rows, missing=0, limited=False)
    assert results["conditions"]["right"]["metrics"]["accuracy"]["value"] == 0.75
    assert results["conditions"]["right"]["flags"] == {}
    assert results["complete"]
    line = sample_line(rows[0], rows[0].scored.sample.images[0].parents[1])
    assert (line["text"], line["parsed"], line["losses"]) == ("B", "B", [2.25, 1.25, 2.25, 2.25])
    assert (line["tokens"], line["finished"]) == (0, True)


def test_a_tie_is_flagged_and_nothing_else_is(letters, tmp_path, fake_model):
    rows = ask(fake_model(lambda s: "none of them"), letters, tmp_path)
    assert {row.scored.score.flags for row in rows} == {("tie",)}
    assert {row.reply["text"] for row in rows} == {"A"}


def test_answers_in_words_have_no_losses(words, tmp_path, fake_model):
    rows = ask(fake_model(right), words, tmp_path)
    line = sample_line(rows[0], rows[0].scored.sample.images[0].parents[1])
    assert "losses" not in line
    assert "tie" not in rows[0].reply


def test_keys_differ_by_what_is_ranked_and_not_by_how_an_answer_would_be_cut(words, letters):
    def keys(task):
        return {request.key for request in plan(task, "f", shuffled_control=True)}

    texts = replace(words, ranked="texts")
    first = words.samples[0]
    other = replace(first, options=(*first.options[:3], "pink"))
    changed = replace(texts, samples=(other, *texts.samples[1:]))
    assert len(keys(words) | keys(letters) | keys(texts)) == 3 * len(keys(words))
    assert len(keys(texts) & keys(changed)) == len(keys(texts)) - 2
    assert keys(replace(letters, max_new_tokens=99)) == keys(letters)
    fewer = replace(first, options=first.options[:3])
    assert keys(replace(letters, samples=(fewer, *letters.samples[1:]))) != keys(letters)


def test_open_questions_are_asked_in_words(tmp_path, fake_model):
    task = as_asked(mixed(), RANKED)
    model = fake_model(right)
    requests = plan(task, "f", shuffled_control=False)
    wants = {request.sample.id: request.wants for request in requests}
    asked_in_words = {s.id for s in task.samples if not s.options}
    assert {id for id, want in wants.items() if want == "answer"} == asked_in_words
    rows = ask(model, task, tmp_path)
    assert task_results(task, rows, missing=0, limited=False)["conditions"]["right"]["metrics"][
        "accuracy"
    ]["value"] == pytest.approx(1.0)
    assert {row.scored.sample.id for row in rows if "losses" not in row.reply} == asked_in_words


@pytest.mark.parametrize("batch_size", [1, 3, 16, 40])
@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_options_count_as_rows_and_those_of_a_question_stay_together(
    tmp_path, fake_model, batch_size, batch_tokens
):
    task = as_asked(mixed(), RANKED)
    model = fake_model(right)
    batches = []
    whole = model.option_losses
    model.option_losses = lambda samples: batches.append(samples) or whole(samples)
    ask(model, task, tmp_path, batch_size=batch_size, batch_tokens=batch_tokens)
    assert sum(map(len, batches)) == 16
    for samples in batches:
        rows = sum(len(sample.options) for sample in samples)
        longest = max(len(sample.prompt) + 1 for sample in samples)
        assert len(samples) == 1 or (rows <= batch_size and rows * longest <= batch_tokens)
        assert all(
            sample.options == tuple("ABCDEFGHIJ"[: len(sample.options)]) for sample in samples
        )
    if batch_size == 40 and batch_tokens == 10_000:
        assert len(batches) == 4


def test_a_batch_that_is_too_large_is_halved_down_to_one_question(tmp_path, fake_model):
    task = as_asked(mixed(), RANKED)
    rows = ask(fake_model(right, room=10), task, tmp_path / "fits", batch_size=40)
    assert len(rows) == len(task.samples)
    with pytest.raises(TooLargeError, match="10 samples"):
        ask(fake_model(right, room=9), task, tmp_path / "full", batch_size=40)


def test_after_a_crash_only_what_is_missing_is_ranked_and_ranks_share(tmp_path, fake_model):
    task = as_asked(mixed(), RANKED)
    undisturbed = ask(fake_model(right), task, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(fake_model(right, crash_after=7), task, tmp_path / "cut", batch_size=12)
    requests = plan(task, "f", shuffled_control=True)
    left = {request.sample.id for request in unanswered(task, requests, tmp_path / "cut")}
    assert 0 < len(left) < len(task.samples)
    asked = set()
    for number in range(2):
        again = fake_model(right)
        rank = Rank(number, 2)
        rows = ask(again, task, tmp_path / "cut", batch_size=5, rank=rank)
        asked |= set(again.asked)
    assert asked == left
    assert rows == undisturbed


@pytest.mark.parametrize("name", ["stamps_yesno", "stamps_short"])
def test_a_task_without_options_is_refused_by_name(data_root, name):
    with pytest.raises(ValueError, match=f"task {name} has no sample with options"):
        as_asked(load_task(name, data_root), RANKED)


def test_a_rule_that_reads_no_letters_is_refused(words):
    spelled = tuple(replace(s, references=(s.options[0],)) for s in words.samples)
    own = replace(words, name="own", samples=spelled, score=exact_match.score)
    with pytest.raises(ValueError, match="task own: its rule finds no option's letter right"):
        as_asked(own, RANKED)
    assert as_asked(replace(own, unscored="a judge"), RANKED).ranked == "letters"


@pytest.mark.parametrize("way", ["num_beams", "sampling", "self_contrast"])
def test_decoding_beside_ranking_is_refused(words, way):
    assert as_asked(words, {way: 1}) is words
    for task, more in ((words, RANKED), (replace(words, ranked="texts"), {})):
        with pytest.raises(ValueError, match=f"task stamps_choice takes .* leave out --{way}"):
            as_asked(task, {**more, way: 1})


def test_options_that_cannot_be_ranked_are_refused(words):
    first, *others = words.samples
    bare = replace(first, options=())
    many = replace(first, options=("x",) * 27)
    with pytest.raises(ValueError, match="red-choice of stamps_choice has no options"):
        replace(words, samples=(bare, *others), ranked="texts")
    with pytest.raises(ValueError, match="red-choice of stamps_choice has 27 options"):
        replace(words, samples=(many, *others), ranked="letters")


def test_a_table_says_so():
    assert mark(RANKED) == " (OPTIONS RANKED)"
    assert list(describe(RANKED)) == [
        "of options the one of the lowest loss is taken for the answer"
    ]
    assert json.loads(json.dumps(RANKED)) == RANKED
