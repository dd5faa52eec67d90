"""Counts of batches against a loop over single questions, a forward over each whole answer."""

import csv
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from eval import model as adapter
from eval.__main__ import main
from eval.expert_shares import expert_shares
from eval.plan import plan
from eval.predict import predict
from eval.ranks import Rank
from eval.score import score_samples, task_results
from eval.store import read_predictions
from eval.task import Sample, load_task
from llava_compete import upcycle_model
from llava_compete.data import ImageFolder
from llava_compete.data.images import picture_side
from llava_compete.processor import prompt_batch
from llava_compete.routing.collect import layer_names
from llava_compete.routing.watch import keyed_layers
from llava_compete.vision import ImageTower, describe_tower
from tests import tiny

EVERYWHERE = ("vision", *tiny.PARTS)
MIXES = {
    "everywhere": {"parts": EVERYWHERE},
    "tower": {"parts": ("vision",)},
    "projector": {"parts": ("projector",)},
    "one layer": {"parts": ("language_model",), "layers": [1]},
    "capacity": {"parts": EVERYWHERE, "router": "topk", "top_k": 1},
}


@pytest.fixture
def samples(data_root):
    """Neighbours about one picture, two pictures, none, prompts of unequal length."""
    tasks = [load_task(f"stamps_{name}", data_root) for name in ("yesno", "choice", "short")]
    shown = [sample for task in tasks for sample in task.samples[:4]]
    both = tuple(image for sample in shown[:4:2] for image in sample.images)
    compared = Sample("two", "Which is larger?", ("the first",), both)
    again = Sample("three", "Which is larger, or smaller?", ("the first",), both)
    text = [Sample(f"text-{n}", "What is two and two?" * n, ("four",)) for n in (1, 2)]
    return sorted([*shown, compared, again, *text], key=lambda sample: sample.images)


def answer_of(model, processor, sample, max_new_tokens):
    """The prompt as the processor makes it, and the ids of the answer."""
    side = picture_side(processor)
    pictures = [ImageFolder(path.parent).open(path.name, "x", side) for path in sample.images]
    prompt = prompt_batch(processor, [[adapter._question(sample)]], [pictures])
    return prompt, model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)[0]


def stopping_early(model, processor, samples):
    """The model with one more stop token, at which some answers end early and others do not."""
    answers = [answer_of(model, processor, sample, 8)[1].tolist() for sample in samples]
    early = [token for ids in answers for token in set(ids[:6])]
    some = {token for token in early if sum(token in ids for ids in answers) < len(answers)}
    stop = max(sorted(some), key=early.count)
    (end,) = torch.tensor(model.generation_config.eos_token_id).reshape(-1).tolist()
    model.generation_config.eos_token_id = [stop, end]
    return model


def counts_of_one(model, processor, sample, max_new_tokens):
    """By hooks on one forward over the question and all of its answer that is ever put in."""
    prompt, answer_T = answer_of(model, processor, sample, max_new_tokens)
    ids = torch.cat([prompt["input_ids"][0], answer_T[:-1]])
    behind = prompt["input_ids"].shape[1]
    kinds = ["image" if i == model.config.image_token_id else "text" for i in ids[:behind]]
    kinds += ["answer"] * (len(ids) - behind)
    names, found, handles = layer_names(model), {}, []
    for key, layer in keyed_layers(model):

        def see(router, args, routing, key=key, layer=layer):
            part, number = key[0], str(names[key])
            of_tokens = kinds if part == "language_model" else ["image"] * len(routing.ids_TK)
            for kind in dict.fromkeys(of_tokens):
                place = found.setdefault(part, {}).setdefault(kind, {"tokens": 0, "chosen": {}})
                place["tokens"] = of_tokens.count(kind)
                place["chosen"][number] = [0] * layer.experts.num_experts
            for kind, taken in zip(of_tokens, routing.ids_TK.tolist(), strict=True):
                for expert in taken:
                    if expert < layer.experts.num_experts:
                        found[part][kind]["chosen"][number][expert] += 1

        handles.append(layer.router.register_forward_hook(see))
    with torch.no_grad():
        model(input_ids=ids[None], pixel_values=prompt.get("pixel_values"))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("mix", MIXES)
def test_batches_count_as_one_question_at_a_time(moe, samples, mix):
    model, processor = moe(perturbation=2.0, **MIXES[mix])
    model = stopping_early(model.eval(), processor, samples)
    expected = [counts_of_one(model, processor, sample, 8) for sample in samples]
    for size in (1, 3, 16):
        asked = adapter.LlavaCompete(model, processor, expert_load=True)
        batches = [samples[i : i + size] for i in range(0, len(samples), size)]
        answers = [answer for batch in batches for answer in asked.answers(batch, 8)]
        assert [answer.experts for answer in answers] == expected
    if mix == "everywhere":
        assert asked.tokens_saved > 0
        assert asked.pictures.seen < asked.pictures.shown + len(samples)
    lengths = {answer.tokens for answer in answers}
    assert len(lengths) > 1
    assert {answer.finished for answer in answers} == {True, False}


def make_resnet(folder):
    """A tower without a class token or blocks."""
    folder.mkdir()
    config = describe_tower("timm/test_resnet", "final", image_size=64)
    save_file(ImageTower(config).trunk.state_dict(), folder / "tower.safetensors")
    return config, folder / "tower.safetensors"


@pytest.mark.parametrize("tower", ["resnet", "two scales"])
def test_towers_count_whatever_they_are_made_of(samples, tmp_path, tower):
    if tower == "resnet":
        model, processor = tiny.compose_tiny(tmp_path, make=make_resnet)
        upcycle_model(model, tiny.moe_configs(), perturbation=2.0)
    else:
        model, processor = tiny.compose_tiny(tmp_path, scales=(1, 2))
        upcycle_model(model, tiny.moe_configs(EVERYWHERE), perturbation=2.0)
    asked = adapter.LlavaCompete(model.eval(), processor, expert_load=True)
    answers = asked.answers(samples, 2)
    expected = [counts_of_one(model, processor, sample, 2) for sample in samples]
    assert [answer.experts for answer in answers] == expected


@pytest.fixture
def asked(moe, data_root):
    model, processor = moe(parts=EVERYWHERE, perturbation=2.0)
    task = load_task("stamps_short", data_root)
    requests = plan(task, "f", shuffled_control=True, expert_load=True)
    return adapter.LlavaCompete(model.eval(), processor, expert_load=True), task, requests


def test_two_ranks_count_as_one_and_a_loss_in_between_changes_nothing(asked, tmp_path):
    model, task, requests = asked
    predict(model, task, requests, tmp_path / "one", batch_size=16)
    for number in (1, 0):
        predict(model, task, requests, tmp_path / "two", batch_size=3, rank=Rank(number, 2))
    one, two = (read_predictions(tmp_path / name, task.name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, reply in one.items():  # a loss rounds by the pictures that its own was run beside
        near = {"loss": pytest.approx(reply["loss"], rel=1e-5)} if "loss" in reply else {}
        assert two[key] == {**reply, **near}
    assert {"loss" in reply for reply in one.values()} == {True, False}
    assert {"loss" in reply for reply in one.values() if "experts" not in reply} == {True}


def test_a_task_has_the_shares_of_its_answers_with_the_right_pictures(asked, tmp_path):
    model, task, requests = asked
    predict(model, task, requests, tmp_path)
    rows = score_samples(task, requests, read_predictions(tmp_path, task.name))
    found = task_results(task, rows, missing=0, limited=False)["experts"]
    right = [row.reply["experts"] for row in rows if row.condition == "right"]
    assert found.keys() == set(EVERYWHERE)
    for part, shares in found.items():
        (first, *_), kinds = shares["layers"], shares["tokens"]
        assert (shares["answers"], shares["num_experts"]) == (len(task.samples), 4)
        assert kinds == {kind: sum(r[part][kind]["tokens"] for r in right) for kind in kinds}
        for kind in kinds:
            of_layer = [r[part][kind]["chosen"][str(first["layer"])] for r in right]
            counts = [sum(column) for column in zip(*of_layer, strict=True)]
            load = [count / sum(counts) for count in counts]
            assert first["kinds"][kind]["load"] == pytest.approx(load)
        everything = [layer["kinds"]["all"]["load"] for layer in shares["layers"]]
        means = [sum(column) / len(everything) for column in zip(*everything, strict=True)]
        assert (shares["least_load"], shares["most_load"]) == pytest.approx(
            (min(means), max(means))
        )
        assert shares["least_load"] < 0.25 < shares["most_load"]


def test_layers_are_in_the_order_of_their_numbers_and_kinds_without_choices_left_out():
    of_kind = {"tokens": 2, "chosen": {"10": [0, 0], "9": [3, 1]}}
    text = {"tokens": 1, "chosen": {"10": [0, 2], "9": [0, 0]}}
    shares = expert_shares(
        [{"language_model": {"image": of_kind}}, {"language_model": {"text": text}}]
    )
    assert shares["language_model"] == {
        "answers": 2,
        "num_experts": 2,
        "tokens": {"image": 2, "text": 1},
        "least_load": 0.375,
        "most_load": 0.625,
        "layers": [
            {"layer": 9, "kinds": {"image": {"load": [0.75, 0.25]}, "all": {"load": [0.75, 0.25]}}},
            {"layer": 10, "kinds": {"text": {"load": [0, 1]}, "all": {"load": [0, 1]}}},
        ],
    }
    none = {"projector": {"image": {"tokens": 2, "chosen": {"0": [0, 0]}}}}
    dropped = expert_shares([none])["projector"]
    assert (dropped["least_load"], dropped["layers"]) == (None, [{"layer": 0, "kinds": {}}])


def test_counts_of_pictures_outlive_their_features_until_the_batch_is_answered(asked):
    model, task, _ = asked
    model.pictures._kept = 1
    alone = [model.answers([sample], 4)[0].experts for sample in task.samples]
    assert [answer.experts for answer in model.answers(task.samples, 4)] == alone
    assert len(model.pictures._features) == 1


@pytest.fixture
def run(data_root, tmp_path):
    def run(checkpoint, out, *more, tasks="stamps_short"):
        words = ["run", "--checkpoint", checkpoint, "--data_root", data_root, "--tasks", tasks]
        return main([str(word) for word in [*words, "--out", tmp_path / out, *more]])

    return run


def test_what_was_counted_is_part_of_what_was_asked(run, checkpoints, tmp_path, capsys):
    assert run(checkpoints["moe"], "run") == 0
    plain = (tmp_path / "run/samples/stamps_short.jsonl").read_bytes()
    assert run(checkpoints["moe"], "run", "--expert_load") == 0
    replies = read_predictions(tmp_path / "run", "stamps_short").values()
    assert sum("experts" in reply for reply in replies) == sum("text" in r for r in replies) / 2
    assert (tmp_path / "run/samples/stamps_short.jsonl").read_bytes() == plain
    results = (tmp_path / "run/results.json").read_bytes()
    assert main(["score", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/results.json").read_bytes() == results
    experts = json.loads(results)["tasks"]["stamps_short"]["experts"]
    assert set(experts) == set(tiny.PARTS)
    assert f"language_model's experts: least {experts['language_model']['least_load']:.3f}" in (
        capsys.readouterr().out
    )


def test_a_run_in_parts_has_the_bytes_of_one_at_once(run, checkpoints, tmp_path):
    run(checkpoints["moe"], "parts", "--expert_load", "--limit", "3", "--batch_size", "2")
    run(checkpoints["moe"], "parts", "--expert_load", "--batch_size", "3")
    run(checkpoints["moe"], "whole", "--expert_load")
    parts, whole = ((tmp_path / name / "results.json").read_bytes() for name in ("parts", "whole"))
    assert parts == whole


def test_reports_show_loads_where_they_were_counted(run, checkpoints, tmp_path):
    run(checkpoints["moe"], "counted", "--expert_load", "--batch_size", "3")
    run(checkpoints["moe"], "plain")
    runs = [str(tmp_path / name) for name in ("plain", "counted")]
    assert main(["report", *runs, "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.md").read_text()
    assert text.count("### Expert load of") == 1
    for part in tiny.PARTS:
        assert f"figures/load-2-stamps_short-{part}.png" in text
        assert (tmp_path / f"report/figures/load-2-stamps_short-{part}.png").is_file()
    with (tmp_path / "report/experts.csv").open() as file:
        rows = list(csv.DictReader(file))
    results = json.loads((tmp_path / "counted/results.json").read_text())
    experts = results["tasks"]["stamps_short"]["experts"]
    written = [float(row["load"]) for row in rows if row["part"] == "language_model"]
    kinds = [layer["kinds"] for layer in experts["language_model"]["layers"]]
    expected = [kinds[kind]["load"] for kinds in kinds for kind in ("image", "text", "answer")]
    assert written == [load for loads in expected for load in loads]
    assert {row["run"] for row in rows} == {runs[1]}
    main(["report", runs[0], "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other/experts.csv").exists()


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("dense", (), r"dense has no experts whose tokens could be counted"),
        ("moe", ("--num_beams", "2"), "num_beams=2 and expert_load: .* give one of them"),
        ("moe", ("--self_contrast", "{}"), "self_contrast and expert_load: .* give one of them"),
        ("moe", ("--rank_options",), "task stamps_choice is answered by the losses of options"),
    ],
)
def test_what_cannot_be_counted_is_refused(run, checkpoints, capsys, kind, more, message):
    with pytest.raises(SystemExit) as error:
        run(checkpoints[kind], "run", "--expert_load", *more, tasks="stamps_choice")
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
