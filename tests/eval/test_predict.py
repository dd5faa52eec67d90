import json

import pytest

from eval.plan import plan
from eval.predict import TooLargeError, predict, unanswered
from eval.store import read_predictions
from eval.task import load_task


@pytest.fixture
def task(data_root):
    return load_task("stamps_yesno", data_root)


@pytest.fixture
def requests(task):
    return plan(task, "f", shuffled_control=True)


def only_file(run):
    (file,) = (run / "predictions" / "stamps_yesno").iterdir()
    return file


def test_every_request_gets_its_own_reply(task, requests, tmp_path, fake_model):
    model = fake_model(lambda sample: f"about {sample.images[0].stem}, {sample.id}")
    assert predict(model, task, requests, tmp_path, batch_size=3) == len(requests)
    replies = read_predictions(tmp_path, task.name)
    for request in requests:
        reply = replies[request.key]
        assert reply["text"] == f"about {request.sample.images[0].stem}, {request.sample.id}"
        assert (reply["id"], reply["condition"]) == (request.sample.id, request.condition)
    assert max(model.batches) == 3


def test_the_longest_prompt_is_asked_first_and_those_of_its_picture_with_it(
    task, requests, tmp_path, fake_model
):
    asked = []
    model = fake_model(lambda sample: asked.append(sample) or "yes")
    predict(model, task, requests, tmp_path, batch_size=2)
    assert len(asked[0].prompt) == max(len(request.sample.prompt) for request in requests)
    pictures = [sample.images for sample in asked]
    runs = [images for i, images in enumerate(pictures) if i == 0 or images != pictures[i - 1]]
    assert len(runs) == len(set(pictures)) == 4
    assert model.expected == model.asked[2:]  # each batch but the first was announced, in order


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_batch_that_is_too_large_is_halved_until_it_fits(
    task, requests, tmp_path, fake_model, room
):
    model = fake_model(lambda sample: sample.id, room=room)
    assert predict(model, task, requests, tmp_path, batch_size=16) == len(requests)
    assert sorted(model.asked) == sorted(request.sample.id for request in requests)
    assert 1 <= max(model.batches) <= room
    replies = read_predictions(tmp_path, task.name)
    assert all(replies[r.key]["text"] == r.sample.id for r in requests)


def test_a_request_that_does_not_fit_alone_ends_the_run(task, requests, tmp_path, fake_model):
    with pytest.raises(TooLargeError, match="1 samples"):
        predict(fake_model(lambda sample: "yes", room=0), task, requests, tmp_path)


@pytest.mark.parametrize("tokens", [1, 100, 230, 1000])
def test_a_batch_has_no_more_tokens_than_it_may(task, requests, tmp_path, fake_model, tokens):
    model = fake_model(lambda sample: "yes")
    predict(model, task, requests, tmp_path, batch_tokens=tokens)
    length = {r.sample.id: len(r.sample.prompt) + task.max_new_tokens for r in requests}
    asked = iter(model.asked)
    for rows in model.batches:
        batch = [length[next(asked)] for _ in range(rows)]
        assert rows == 1 or rows * max(batch) <= tokens
    assert max(model.batches) == {1: 1, 100: 1, 230: 2}.get(tokens, max(model.batches))


def test_a_finished_run_asks_nothing(task, requests, tmp_path, fake_model):
    predict(fake_model(lambda sample: "yes"), task, requests, tmp_path)
    again = fake_model(lambda sample: "no")
    assert predict(again, task, requests, tmp_path) == 0
    assert again.asked == []


def test_after_a_crash_only_what_is_missing_is_asked(task, requests, tmp_path, fake_model):
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(fake_model(lambda s: "yes", crash_after=6), task, requests, tmp_path, batch_size=3)
    left = unanswered(task, requests, tmp_path)
    assert len(left) == len(requests) - 6
    again = fake_model(lambda sample: "yes")
    predict(again, task, requests, tmp_path, batch_size=4)
    assert sorted(again.asked) == sorted(request.sample.id for request in left)
    assert unanswered(task, requests, tmp_path) == []


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_last_line_is_asked_again_and_spoils_nothing(
    task, requests, tmp_path, fake_model, cut
):
    predict(fake_model(lambda sample: "yes"), task, requests, tmp_path)
    whole = only_file(tmp_path).read_bytes()
    only_file(tmp_path).write_bytes(whole[:-cut])
    assert len(unanswered(task, requests, tmp_path)) == 1
    again = fake_model(lambda sample: "yes")
    predict(again, task, requests, tmp_path)
    assert len(again.asked) == 1
    assert only_file(tmp_path).read_bytes() == whole


def test_a_spoiled_line_in_the_middle_is_refused(task, requests, tmp_path, fake_model):
    predict(fake_model(lambda sample: "yes"), task, requests, tmp_path)
    lines = only_file(tmp_path).read_text().splitlines(keepends=True)
    only_file(tmp_path).write_text(lines[0] + "{\n" + "".join(lines[1:]))
    with pytest.raises(ValueError, match="jsonl:2: not a line of JSON"):
        unanswered(task, requests, tmp_path)


def test_two_files_may_repeat_a_reply_but_not_contradict_it(task, requests, tmp_path, fake_model):
    predict(fake_model(lambda sample: "yes"), task, requests, tmp_path)
    file = only_file(tmp_path)
    line = file.read_text().splitlines()[0]
    other = file.with_name("rank-1.jsonl")
    other.write_text(line + "\n")
    assert unanswered(task, requests, tmp_path) == []
    other.write_text(json.dumps(json.loads(line) | {"text": "no"}) + "\n")
    with pytest.raises(ValueError, match="another reply"):
        unanswered(task, requests, tmp_path)


def test_line_separators_inside_an_answer_do_not_split_its_line(
    task, requests, tmp_path, fake_model
):
    text = "a\u2028b\x85c\nd"
    predict(fake_model(lambda sample: text), task, requests, tmp_path)
    assert {r["text"] for r in read_predictions(tmp_path, task.name).values()} == {text}


def test_losses_are_kept_beside_the_answers(data_root, tmp_path, fake_model):
    task = load_task("stamps_short", data_root)
    requests = plan(task, "f", shuffled_control=False)
    predict(fake_model(lambda sample: "square", loss=2.0), task, requests, tmp_path)
    replies = read_predictions(tmp_path, task.name)
    losses = {r["id"]: r["loss"] for r in replies.values() if "loss" in r}
    assert losses == {
        f"{c}-name": 2 + len(f"a {c} thing") / 7 for c in ("red", "blue", "green", "grey")
    }


def test_a_reply_too_few_is_an_error_and_stores_nothing(task, requests, tmp_path, fake_model):
    model = fake_model(lambda sample: "yes")
    whole = model.answers
    model.answers = lambda samples, n: whole(samples, n)[1:]
    with pytest.raises(ValueError, match="shorter"):
        predict(model, task, requests, tmp_path)
    assert read_predictions(tmp_path, task.name) == {}


def test_a_batch_size_below_one_is_refused(task, requests, tmp_path, fake_model):
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        predict(fake_model(lambda sample: "yes"), task, requests, tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="batch_tokens=0 must be at least 1"):
        predict(fake_model(lambda sample: "yes"), task, requests, tmp_path, batch_tokens=0)
