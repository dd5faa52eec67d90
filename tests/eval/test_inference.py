"""A trained checkpoint run under another routing or decoding, through the command."""

import json

import pytest
import torch

import llava_compete
from eval import decoding
from eval import model as adapter
from eval.__main__ import main
from eval.inference import Inference, describe, mark
from eval.task import load_task
from llava_compete import RoutingChange, SelfContrast, save
from tests import tiny

TOPK_1 = ("--router", "topk", "--top_k", "1")
BY_TOKEN = ("--router_options", '{"scope": "token"}')


@pytest.fixture
def run(data_root):
    def run(checkpoint, out, *more, tasks="stamps_short"):
        return main(
            [
                "run",
                *("--checkpoint", str(checkpoint)),
                *("--data_root", str(data_root)),
                *("--tasks", tasks),
                *("--out", str(out)),
                *more,
            ]
        )

    return run


@pytest.fixture
def refused(run, capsys):
    """``refused(checkpoint, out, ...)``: the one line a command ends with, its status being 2."""

    def refused(*args, **kwargs):
        with pytest.raises(SystemExit) as error:
            run(*args, **kwargs)
        assert error.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in reversed(lines) if "error:" in line)

    return refused


@pytest.fixture
def telling(tmp_path):
    """A checkpoint whose experts and gates differ much, so that another routing shows."""
    path = tiny.make_checkpoint(tmp_path / "telling-start", "qwen3", perturbation=2.0)
    model, processor = llava_compete.load(path)
    with torch.no_grad():
        for layers in model.moe_layers().values():
            for layer in layers:
                layer.router.gate.weight.mul_(20)
    save(model, processor, tmp_path / "telling")
    return tmp_path / "telling"


def read(path):
    return json.loads(path.read_text())


def replies(run_dir):
    (file,) = (run_dir / "predictions/stamps_short").iterdir()
    lines = file.read_text().splitlines()
    rows = map(json.loads, lines)
    return {(r["condition"], r["id"], "loss" in r): r.get("text", r.get("loss")) for r in rows}


@pytest.mark.parametrize("router", ["usmoe", "expert_choice"])
def test_a_checkpoint_answers_under_another_router_with_its_own_weights(
    run, telling, tmp_path, data_root, router
):
    run(telling, tmp_path / "own")
    assert run(telling, tmp_path / "other", "--router", router, *BY_TOKEN) == 0
    model, processor = llava_compete.load(
        telling, routing=RoutingChange(router=router, router_options={"scope": "token"})
    )
    other = replies(tmp_path / "other")
    assert other != replies(tmp_path / "own")
    record = read(tmp_path / "other/run.json")["arguments"]["changes"]
    assert set(record) == {"routing"}
    assert set(record["routing"]) == set(tiny.PARTS)
    for routing in record["routing"].values():
        assert (routing["router"], routing["top_k"]) == (router, 2)
        assert routing["router_options"]["scope"] == "token"
    task = load_task("stamps_short", data_root)
    for sample, answer in zip(
        task.samples,
        adapter.LlavaCompete(model, processor).answers(task.samples, task.max_new_tokens),
        strict=True,
    ):
        assert other["right", sample.id, False] == answer.text


def test_one_part_alone_can_be_routed_otherwise(run, telling, tmp_path, capsys):
    run(telling, tmp_path / "run", *TOPK_1, "--router_parts", "language_model")
    changes = read(tmp_path / "run/results.json")["changes"]
    wanted = {"router": "topk", "router_options": {}, "top_k": 1}
    assert changes == {"routing": {"language_model": wanted}}
    text = capsys.readouterr().out
    assert "stamps_short (OTHER ROUTING) | exact_match " in text
    assert "- Not as it was saved: language_model routed by topk {}, top 1." in text


def test_what_the_checkpoint_has_anyway_changes_nothing(run, telling, tmp_path):
    run(telling, tmp_path / "run", tasks="stamps_choice")
    before = (tmp_path / "run/results.json").read_bytes()
    same = ("--router", "compete", "--top_k", "2", "--router_options", '{"theta": 0.1}')
    assert run(telling, tmp_path / "run", *same, tasks="stamps_choice") == 0
    assert (tmp_path / "run/results.json").read_bytes() == before
    assert "changes" not in json.loads(before)


@pytest.mark.parametrize("first", [(), TOPK_1, ("--self_contrast", "{}")])
@pytest.mark.parametrize("second", [("--top_k", "3"), ("--self_contrast", '{"beta": 1.0}')])
def test_answers_of_two_ways_never_mix(run, refused, checkpoints, tmp_path, first, second):
    out = tmp_path / "run"
    run(checkpoints["moe"], out, "--limit", "1", *first, tasks="stamps_choice")
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    message = refused(checkpoints["moe"], out, *second, tasks="stamps_choice")
    assert "holds the answers of another model: fingerprint" in message
    assert "Give another --out" in message
    way = {
        (): "as it was saved",
        TOPK_1: "routed by topk {}, top 1",
        ("--self_contrast", "{}"): "answers decoded by self-contrast",
    }
    assert way[first] in message
    before.pop(out / "fingerprint.json")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_self_contrast_changes_answers_and_no_loss(run, telling, tmp_path, capsys):
    run(telling, tmp_path / "own")
    capsys.readouterr()
    assert run(telling, tmp_path / "contrast", "--self_contrast", '{"beta": 3, "alpha": 0.3}') == 0
    text = capsys.readouterr().out
    assert "stamps_short (SELF-CONTRAST) | exact_match " in text
    assert 'self-contrast {"alpha": 0.3, "beta": 3, "weak_rank": 2}; losses are without it' in text
    own, contrast = replies(tmp_path / "own"), replies(tmp_path / "contrast")
    assert own.keys() == contrast.keys()
    losses = {key for key in own if key[2]}
    assert {key: own[key] for key in losses} == {key: contrast[key] for key in losses}
    assert any(own[key] != contrast[key] for key in own.keys() - losses)


def test_a_scored_run_keeps_saying_how_it_was_asked(run, checkpoints, tmp_path, capsys):
    run(checkpoints["moe"], tmp_path / "run", *TOPK_1, tasks="stamps_choice")
    before = (tmp_path / "run/results.json").read_bytes()
    assert main(["score", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/results.json").read_bytes() == before
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "(OTHER ROUTING)" in capsys.readouterr().out


@pytest.mark.parametrize("router", ["usmoe", "expert_choice"])
def test_a_router_that_sees_the_answer_is_refused_before_the_first_question(
    run, refused, checkpoints, tmp_path, router
):
    message = refused(checkpoints["moe"], tmp_path / "run", "--router", router)
    assert f"router {router} chooses for a token by the tokens behind it" in message
    assert "router_options={'scope': 'token'}" in message
    assert not (tmp_path / "run/run.json").exists()
    parts = ("--router_parts", "projector")  # sees a whole picture anyway
    assert run(checkpoints["moe"], tmp_path / "run", "--router", router, *parts) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--router", "usmo"], "router='usmo' is not known; did you mean usmoe"),
        (["--router_options", '{"thet": 1}'], "'thet' is no option of compete; did you mean theta"),
        (
            ["--router_options", '{"theta": "x"}'],
            "'losers_gradient': 'exact'} of compete: '<' not supported",
        ),
        (["--router_options", "theta"], "'theta' is not JSON"),
        (["--router_options", "[1]"], "'[1]' must be a JSON object"),
        (["--top_k", "5"], "top_k=5 must be between 1 and num_experts=4"),
        (["--top_k", "0"], "'0' must be a whole number above 0"),
        (["--top_k", "1", "--router_parts", "vision"], "router_parts: 'vision' has no experts"),
        (["--self_contrast", '{"weak_rank": 5}'], "weak_rank=5 must not be above num_experts=4"),
        (["--self_contrast", '{"gamma": 5}'], "'gamma' is not known"),
        (
            ["--sampling", '{"temprature": 1}'],
            "'temprature' is not known; did you mean temperature",
        ),
        (["--sampling", '{"temperature": 0}'], "temperature=0 must be above 0 and finite"),
        (["--sampling", '{"top_p": 1.5}'], "top_p=1.5 must be above 0 and at most 1"),
        (["--sampling", '{"top_k": 1.5}'], "top_k=1.5 must be a number"),
        (["--sampling", '{"top_k": -1}'], "top_k=-1 must not be negative"),
        (["--sampling", "{}", "--num_beams", "2"], "num_beams=2 and sampling: "),
        (["--self_contrast", "0.5"], "'0.5' must be a JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    refused, checkpoints, tmp_path, flags, message
):
    assert message in refused(checkpoints["moe"], tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [TOPK_1, ("--self_contrast", "{}")])
def test_a_dense_checkpoint_has_no_other_routing(refused, checkpoints, tmp_path, flags):
    message = refused(checkpoints["dense"], tmp_path / "run", *flags)
    assert "dense" in message
    assert "`llava-compete upcycle` makes them" in message
    assert not (tmp_path / "run").exists()


def test_a_router_with_another_gate_is_refused_by_name(refused, checkpoints, tmp_path):
    message = refused(checkpoints["moe"], tmp_path / "run", "--router", "cosine")
    assert "has the weights of another router than cosine" in message
    assert not (tmp_path / "run/run.json").exists()


def test_nothing_asked_for_is_nothing_changed(checkpoints):
    assert not Inference()
    assert decoding.changes(checkpoints["moe"], Inference()) == {}
    assert decoding.changes(checkpoints["dense"], Inference()) == {}
    assert list(describe({})) == []
    assert mark({}) == ""


def test_defaults_of_self_contrast_are_recorded_in_whole(checkpoints):
    changes = decoding.changes(checkpoints["moe"], Inference(self_contrast={}))
    defaults = SelfContrast()
    assert changes["self_contrast"] == {
        "alpha": defaults.alpha,
        "beta": defaults.beta,
        "weak_rank": defaults.weak_rank,
    }


@pytest.mark.parametrize(
    ("flags", "mark", "phrase"),
    [
        (["--num_beams", "3"], "(BEAMS)", "answers by beam search, 3 beams"),
        (
            ["--sampling", '{"temperature": 2}'],
            "(SAMPLED)",
            'sampling {"seed": 0, "temperature": 2',
        ),
    ],
)
def test_answers_found_otherwise_are_kept_apart_and_do_not_depend_on_the_batch(
    run, refused, checkpoints, tmp_path, capsys, flags, mark, phrase
):
    own, other = tmp_path / "own", tmp_path / "other"
    run(checkpoints["moe"], own)
    capsys.readouterr()
    run(checkpoints["moe"], other, *flags)
    text = capsys.readouterr().out
    assert f"stamps_short {mark} | exact_match " in text
    assert phrase in text
    before = replies(other)
    assert before != replies(own)
    run(checkpoints["moe"], tmp_path / "single", *flags, "--batch_size", "1")
    answers = {key: text for key, text in before.items() if not key[2]}
    assert answers == {k: v for k, v in replies(tmp_path / "single").items() if not k[2]}
    assert "holds the answers of another model" in refused(checkpoints["moe"], other)


def test_one_beam_is_greedy_decoding(checkpoints):
    assert decoding.changes(checkpoints["dense"], Inference(num_beams=1)) == {}
