import pytest

from benchmarks import evaluation
from benchmarks.one_by_one import OneByOne
from eval.model import LlavaCompete
from llava_compete.checkpoint import load
from tests import tiny


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        tiny.draw(number).save(folder / f"{number}.png")
    return folder


def test_both_ways_give_the_same_texts_and_ours_sees_a_picture_once(tmp_path, pictures):
    model, processor = load(tiny.make_checkpoint(tmp_path / "checkpoint"))
    model.eval()
    six, one = evaluation.make_tasks(pictures, 8)
    assert len({sample.images for sample in six.samples}) == 2
    assert len({sample.images for sample in one.samples}) == 8
    found = evaluation.compare(model, processor, six, 1, 4)  # ValueError if texts differ
    assert found["one by one"]["pictures"] == 8
    assert found["ours"]["pictures"] == 2
    assert found["one by one"]["new_tokens"] > 0
    assert found["ratio"] == found["ours"]["median"] / found["one by one"]["median"]


def test_one_by_one_writes_the_prompt_of_the_template(tmp_path, pictures):
    model, processor = load(tiny.make_checkpoint(tmp_path / "checkpoint", moe=False))
    model.eval()
    _, one = evaluation.make_tasks(pictures, 3)
    loop = OneByOne(model, processor)
    prompts = []
    plain_generate = model.generate
    model.generate = lambda **given: prompts.append(given["input_ids"]) or plain_generate(**given)
    ours = [LlavaCompete(model, processor).answers([sample], 4)[0].text for sample in one.samples]
    alone = [loop.answer(sample, 4) for sample in one.samples]
    assert alone == ours
    assert [ids.tolist() for ids in prompts[:3]] == [ids.tolist() for ids in prompts[3:]]


def test_answers_that_differ_have_no_ratio(tmp_path, pictures, monkeypatch):
    model, processor = load(tiny.make_checkpoint(tmp_path / "checkpoint", moe=False))
    _, one = evaluation.make_tasks(pictures, 2)
    monkeypatch.setattr(evaluation, "_one_by_one", lambda *_: {"0": "a", "1": "b"})
    monkeypatch.setattr(evaluation, "_ours", lambda *_: {"0": "a", "1": "c"})
    with pytest.raises(ValueError, match=r"1 of 2 answers differ.*sample 1.*'b' alone, 'c' here"):
        evaluation.compare(model, processor, one, 1, 4)


def test_too_few_pictures(pictures):
    with pytest.raises(ValueError, match=r"has 8 \.png and \.jpg pictures, 9 are asked for"):
        evaluation.make_tasks(pictures, 9)
