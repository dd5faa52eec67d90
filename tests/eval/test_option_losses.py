"""Losses of options by a real model, against each row alone; and the command that ranks them."""

import json
from dataclasses import replace

import pytest
import torch

from eval import model as adapter
from eval.__main__ import main
from eval.inference import Inference
from eval.options import candidates, reply_of
from eval.predict import TooLargeError
from eval.store import read_predictions
from eval.task import Sample, load_task
from llava_compete.data import ImageFolder
from llava_compete.data.encode import tokenise
from llava_compete.processor import prompt_batch
from tests.tiny import PARTS


@pytest.fixture(params=["dense", "language_model", "all"])
def any_model(request, dense, moe):
    """Dense, experts beside a dense tower, experts everywhere."""
    if request.param == "dense":
        model, processor = dense()
    else:
        parts = ("vision", *PARTS) if request.param == "all" else PARTS
        model, processor = moe(parts=parts)
    return model.eval(), processor


@pytest.fixture
def samples(data_root):
    """Texts of unequal length and number; one below two pictures, one below none."""
    shown = load_task("stamps_choice", data_root).samples
    both = tuple(image for sample in shown[:2] for image in sample.images)
    options = ("yes", "a much longer option, of many words", "no", "")
    alike = ("two", "two dogs", "two dogs and a cat", "two")
    return [
        *shown,
        *(replace(s, id=f"{s.id}-letters", options=tuple("ABCD")) for s in shown),
        Sample("two", "Which is larger?", ("A",), both, options),
        Sample("none", "What is two and two?", ("B",), (), ("three", "four")),
        Sample("alike", "How many?", ("A",), shown[1].images, alike),
        Sample("only", "What now?", ("A",), shown[0].images, ("nothing",)),
    ]


def losses_alone(model, processor, sample):
    """The definition: one row for each option, its tokens and the turn's end, in a plain loop."""
    turn = {"role": "user", "content": [*({"type": "image"} for _ in sample.images)]}
    turn["content"].append({"type": "text", "text": sample.prompt})
    pictures = [ImageFolder(path.parent).open(path.name, "x") for path in sample.images]
    prompt = prompt_batch(processor, [[turn]], [pictures])
    length = prompt.pop("input_ids").shape[1]
    prompt.pop("attention_mask")
    losses = []
    for option in sample.options:
        said = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        ids = tokenise(processor, [turn, said]).input_ids
        with torch.no_grad():
            logits = model(input_ids=ids[None], **prompt).logits[0].double()
        row = tokenise(processor, [turn, said])
        answer = [p for p in range(length, len(ids)) if row.labels[p] != -100]
        found = [-logits[p - 1].log_softmax(dim=-1)[ids[p]].item() for p in answer]
        assert processor.tokenizer.decode(ids[answer[0] : answer[-1]]).strip() == option
        losses.append(sum(found) / len(found))
    return losses


def in_batches(pair, samples, batch_size):
    asked = adapter.LlavaCompete(*pair)
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    return [losses for batch in batches for losses in asked.option_losses(batch)]


def test_losses_and_choices_are_those_of_each_row_alone(any_model, samples):
    model, processor = any_model
    found = in_batches(any_model, samples, 16)
    chosen = set()
    for sample, losses in zip(samples, found, strict=True):
        alone = losses_alone(model, processor, sample)
        assert losses == pytest.approx(alone, rel=1e-4)
        assert reply_of(sample, losses)["text"] == reply_of(sample, alone)["text"]
        chosen.add(reply_of(sample, losses)["text"])
    assert len(chosen) > 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_other_questions_in_a_batch_do_not_move_a_bit_of_a_loss(any_model, samples, batch_size):
    together = in_batches(any_model, samples, 16)
    assert in_batches(any_model, samples, batch_size) == together
    assert in_batches(any_model, samples[::-1], batch_size)[::-1] == together


@pytest.mark.parametrize("router", ["stablemoe", "maskmoe", "hypermoe", "acmoe"])
def test_routers_that_read_more_than_a_token_rank_alike(moe, samples, router):
    model, processor = moe(parts=("language_model",), router=router)
    for sample, losses in zip(samples, in_batches((model, processor), samples, 16), strict=True):
        assert losses == pytest.approx(losses_alone(model, processor, sample), rel=1e-4)


def test_a_model_that_does_not_see_all_of_a_prompt_runs_it_for_each_option(
    any_model, samples, monkeypatch
):
    shared = adapter.LlavaCompete(*any_model)
    whole = adapter.LlavaCompete(*any_model)
    found = shared.option_losses(samples)
    assert shared.tokens_saved > 0
    monkeypatch.setattr(adapter, "can_share", lambda model, positions: False)
    for losses, others in zip(whole.option_losses(samples), found, strict=True):
        assert losses == pytest.approx(others, rel=1e-4)
    assert whole.tokens_saved == 0


def test_a_question_too_large_for_the_memory_is_told_as_such(any_model, samples, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adapter, "answer_token_losses", full)
    with pytest.raises(TooLargeError, match="CUDA out of memory"):
        adapter.LlavaCompete(*any_model).option_losses(samples)


def test_the_order_of_the_options_decides_nothing(any_model, samples):
    asked = adapter.LlavaCompete(*any_model)
    turned = [replace(sample, options=sample.options[::-1]) for sample in samples]
    for losses, reverse in zip(
        asked.option_losses(samples), asked.option_losses(turned), strict=True
    ):
        assert losses == pytest.approx(reverse[::-1], rel=1e-4)


def test_alike_options_are_a_tie_in_every_batch(any_model, samples):
    asked = adapter.LlavaCompete(*any_model)
    twins = [replace(sample, options=("the same", "the same")) for sample in samples]
    for batch in (twins, twins[:1]):
        for sample, losses in zip(batch, asked.option_losses(batch), strict=True):
            reply = reply_of(sample, losses)
            assert (reply["text"], reply["tie"]) == ("A", True)


@pytest.fixture
def run(data_root):
    def run(checkpoint, out, *more, tasks="stamps_choice"):
        words = ["run", "--checkpoint", checkpoint, "--data_root", data_root, "--out", out]
        return main([*map(str, words), "--tasks", tasks, *more])

    return run


@pytest.fixture
def refused(run, capsys):
    """``refused(checkpoint, out, ...)``: the error a command ends with, its status being 2."""

    def refused(*args, **kwargs):
        with pytest.raises(SystemExit) as error:
            run(*args, **kwargs)
        assert error.value.code == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_ranked_run_is_marked_and_does_not_depend_on_the_batch(
    run, checkpoints, tmp_path, data_root, capsys, kind
):
    out = tmp_path / "run"
    assert run(checkpoints[kind], out, "--rank_options") == 0
    text = capsys.readouterr().out
    assert "| stamps_choice (OPTIONS RANKED) | accuracy" in text
    assert "- Not as it was saved: of options the one of the lowest loss is taken" in text
    results = json.loads((out / "results.json").read_text())
    assert results["changes"] == {"rank_options": True}
    assert "lowest loss" in results["tasks"]["stamps_choice"]["description"]
    run(checkpoints[kind], tmp_path / "one", "--rank_options", "--batch_size", "1")
    for name in ("results.json", "samples/stamps_choice.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (out / name).read_bytes()
    assert main(["score", str(out)]) == 0
    assert main(["report", str(out), str(tmp_path / "one"), "--output", str(tmp_path / "r")]) == 0
    for name in ("report.html", "report.md"):
        assert "of options the one of the lowest loss" in (tmp_path / "r" / name).read_text()
    assert '""rank_options"": true' in (tmp_path / "r/scores.csv").read_text()
    asked = adapter.LlavaCompete.load(checkpoints[kind], "float32", Inference())
    replies = list(read_predictions(out, "stamps_choice").values())
    task = replace(load_task("stamps_choice", data_root), ranked="letters")
    for sample in task.samples:
        (loss,) = asked.option_losses([replace(sample, options=candidates(task, sample))])
        (stored,) = (r for r in replies if r["id"] == sample.id and r["condition"] == "right")
        assert stored["losses"] == pytest.approx(loss, rel=1e-4)
        assert stored["text"] == reply_of(sample, loss)["text"]


def test_ranked_answers_never_mix_with_words(run, refused, checkpoints, tmp_path):
    run(checkpoints["dense"], tmp_path / "words")
    run(checkpoints["dense"], tmp_path / "ranked", "--rank_options")
    message = refused(checkpoints["dense"], tmp_path / "words", "--rank_options")
    assert "holds the answers of another model" in message
    message = refused(checkpoints["dense"], tmp_path / "ranked")
    assert "of options the one of the lowest loss is taken" in message


@pytest.mark.parametrize(
    ("tasks", "more", "message"),
    [
        ("stamps_choice,stamps_short", [], "task stamps_short has no sample with options"),
        ("stamps_yesno", [], "leave the task out, or --rank_options"),
        ("stamps_choice", ["--num_beams", "2"], "which is not decoded: leave out --num_beams"),
        ("stamps_choice", ["--sampling", "{}"], "leave out --sampling"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_anything_is_written(
    refused, checkpoints, tmp_path, tasks, more, message
):
    out = tmp_path / "run"
    assert message in refused(checkpoints["dense"], out, "--rank_options", *more, tasks=tasks)
    assert not out.exists()
