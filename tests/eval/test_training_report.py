import json
import re
import shutil
import sys
from types import ModuleType

import pytest

from eval.__main__ import main
from eval.charts import charts
from eval.training_log import (
    checkpoint_size,
    competing_steps,
    competition_cost,
    headlines,
    read_training,
    summarise,
)
from eval.training_report import write_report
from llava_compete.checkpoint import count_parameters

# Layers of the language model and of the projector that compete, and seconds, step by step.
LAYERS = [0, 0, 2, 0, 1, 1, 0, 2, 0, 1]
PROJECTOR = [0, 0, 0, 0, 1, 0, 1, 0, 0, 0]
SECONDS = [99.0, 2.0, 3.0, 2.2, 3.4, 3.2, 4.0, 3.0, 1.8, 50.0]
AGREEMENT = {3: 0.5, 5: 0.6, 6: 0.7, 8: 0.8, 10: 0.9}
LOADS = (0.1, 0.2, 0.3, 0.4)
EVIL = "<script>alert('x')</script> | **bold** [a](b) & `c`"


def experts(router):
    return {"num_experts": 4, "top_k": 2, "router": router, "layers": [1, 3]}


CONFIG = {
    "text_config": {"_name_or_path": "/m/Tiny-LM", "num_hidden_layers": 4, "hidden_size": 8},
    "vision_config": {"name": "ViT-T", "image_size": 28, "num_patches": 4},
    "projector": "mlp2x_gelu",
    "moe": {
        "language_model": experts("compete"),
        "projector": {**experts("compete"), "num_experts": 3, "top_k": 1, "layers": None},
    },
}


def entry(step):
    entry = {"step": step, "loss": 3 / step, "language": 2.5 / step, "grad_norm": 1.0}
    entry |= {"learning_rate": 1e-4, "step_seconds": SECONDS[step - 1]}
    for part, layers, count in (("language_model", LAYERS, 4), ("projector", PROJECTOR, 3)):
        entry[f"{part}/competing_layers"] = float(layers[step - 1])
        entry[f"{part}/router_z"] = 0.5
        # Only the last tenth of the steps, which is the last step, has the loads that count.
        shares = LOADS if step == len(LAYERS) else (0.25,) * 4
        entry |= {f"{part}/load/{e}": shares[e] for e in range(count)}
        if layers[step - 1]:
            entry[f"{part}/agreement"] = AGREEMENT[step] if count == 4 else step / 10
            entry[f"{part}/distillation"] = 0.1
    return entry


@pytest.fixture
def training(tmp_path):
    """``training(entries, config)``: a directory as the trainer leaves it."""

    def build(entries=None, config=CONFIG, name="training"):
        path = tmp_path / name
        path.mkdir()
        if entries is None:
            entries = [entry(step) for step in range(1, 11)]
        history = [*entries, {"step": 10, "train_runtime": 5.0, "train_loss": 1.0}]
        (path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        (path / "config.json").write_text(json.dumps(config))
        (path / "recipe.yaml").write_text("checkpoint: /m/<base>\ndata_path: /d/rows.json\n")
        return path

    return build


def dense_entries():
    kept = ("step", "loss", "language", "step_seconds")
    return [{key: entry(step)[key] for key in kept} for step in range(1, 11)]


@pytest.fixture
def evaluation(tmp_path, data_root, fake_model, monkeypatch):
    """``evaluation(reply)``: a run directory with all three tasks."""

    def build(reply=lambda sample: sample.references[0], *more, name="run"):
        loader = type("Loader", (), {"load": lambda *args: fake_model(reply)})
        module = ModuleType("eval.model")
        module.LlavaCompete = loader
        monkeypatch.setitem(sys.modules, "eval.model", module)
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        places = ("--checkpoint", checkpoint, "--data_root", data_root, "--out", tmp_path / name)
        tasks = "stamps_yesno,stamps_choice,stamps_short"
        assert main(["run", "--tasks", tasks, *map(str, places), *more]) == 0
        return tmp_path / name

    return build


def texts(output):
    return [(output / f"report.{ending}").read_text() for ending in ("md", "html")]


def test_the_numbers_of_a_part_are_those_computed_by_hand(training):
    run = read_training(training())
    language, projector = run.parts
    found = summarise(run, language)
    assert (found.competing, found.share) == (5, 0.5)
    assert found.agreement == pytest.approx((0.5 + 0.6 + 0.7 + 0.8 + 0.9) / 5)
    assert found.late_agreement == pytest.approx((0.8 + 0.9) / 2)
    assert (found.least_load, found.most_load) == (0.1, 0.4)
    found = summarise(run, projector)
    assert (found.competing, found.share) == (2, 0.2)
    assert found.agreement == pytest.approx((0.5 + 0.7) / 2)
    assert found.late_agreement == pytest.approx(0.7)
    assert competing_steps(run) == {3, 5, 6, 7, 8, 10}


def test_chance_is_k_of_e_of_each_part(training):
    assert [part.chance for part in read_training(training()).parts] == [2 / 4, 1 / 3]


def test_the_cost_is_by_medians_and_without_the_first_step(training):
    cost = competition_cost(read_training(training()))
    # With competition 3, 5, 6, 7, 8 and 10, without 2, 4 and 9; a mean would see step 10's 50 s.
    slow, quick = (3.2 + 3.4) / 2, 2.0
    assert (cost.competing, cost.plain) == (6, 3)
    assert (cost.competing_seconds, cost.plain_seconds) == (pytest.approx(slow), quick)
    assert cost.ratio == pytest.approx(6 / 9 * slow / quick + 3 / 9)


def test_the_headlines_say_agreement_beside_chance_and_the_cost(training):
    directory = training()
    language, projector, cost = headlines(directory)
    assert "agree on 0.700 of the winners (last third 0.850), chance K/E 0.500" in language
    assert "agree on 0.600 of the winners" in projector
    assert "chance K/E 0.333, 2 of 10 steps" in projector
    ratio = competition_cost(read_training(directory)).ratio
    assert cost == f"a mean step takes {ratio:.3f} times as long as a plain SMoE step"


@pytest.mark.parametrize(
    "steps", [(2, 4, 6, 8, 10), (1, 2), (1,)], ids=["every other", "plain only", "first only"]
)
def test_no_cost_is_told_where_the_log_cannot_tell_it(training, steps):
    run = read_training(training([entry(step) for step in steps]))
    assert competition_cost(run) is None


def test_a_router_that_never_competes_has_no_competition(training):
    config = {**CONFIG, "moe": {"language_model": experts("topk")}}
    entries = [
        {
            name: 0.0 if name.endswith("/competing_layers") else value
            for name, value in entry(step).items()
            if not name.endswith(("/agreement", "/distillation"))
        }
        for step in range(1, 11)
    ]
    run = read_training(training(entries, config))
    assert competing_steps(run) == set()
    found = summarise(run, run.parts[0])
    assert (found.competing, found.agreement, found.late_agreement) == (0, None, None)
    assert [chart.name for chart in charts(run)] == ["loss", "router-losses", "load"]


def test_the_size_of_a_checkpoint_is_that_of_its_model(moe, training, tmp_path):
    model, _ = moe("llama")
    model.save_pretrained(tmp_path / "saved")
    path = training(config=json.loads((tmp_path / "saved" / "config.json").read_text()))
    assert checkpoint_size(read_training(path)) is None
    shutil.copy(tmp_path / "saved" / "model.safetensors", path)
    assert checkpoint_size(read_training(path)) == count_parameters(model)


def test_the_report_holds_the_numbers(training, evaluation, tmp_path):
    run, output = evaluation(), tmp_path / "out"
    directory = training()
    write_report([run], [directory], output)
    fingerprint = json.loads((run / "run.json").read_text())["fingerprint"]
    for text in texts(output):
        for found in (
            fingerprint,
            "Tiny-LM (4 layers, width 8)",
            "ViT-T (28 pixels, 4 patches)",
            "E = 4, K = 2, router compete, in 2 of 4 layers",
            "E = 3, K = 1, router compete",
            "Any part: 6 of 10 steps with competition (60.0 %)",
            "takes 1.433 times as long",
            "3.300 s over 6 steps with competition and 2.000 s over 3 without",
            "one run, on a machine that other work may have shared",
        ):
            assert found in text
    markdown = texts(output)[0]
    numbers = ["5", "50.0 %", "0.700", "0.850", "0.500", "0.100", "0.400", "0.250"]
    assert "| language_model | " + " | ".join(numbers) + " |" in markdown
    numbers = ["2", "20.0 %", "0.600", "0.700", "0.333", "0.100", "0.300", "0.333"]
    assert "| projector | " + " | ".join(numbers) + " |" in markdown


def test_the_sentences_say_what_the_results_say(evaluation, tmp_path):
    run = evaluation(lambda sample: "square" if sample.images[0].stem != "red" else "thing")
    write_report([run], [], tmp_path / "out")
    results = json.loads((run / "results.json").read_text())
    task = results["tasks"]["stamps_short"]
    right, shuffled = (task["conditions"][c]["metrics"] for c in ("right", "shuffled"))
    loss, change = right["answer_loss"]["value"], task["differences"]["answer_loss"]["value"]
    naming = (
        f"(stamps_short, n = 4): the answer loss is {loss:.3f} nats a token with the right picture "
        f"and {shuffled['answer_loss']['value']:.3f} with a shuffled one, a difference of "
        f"{change:+.3f} nats a token"
    )
    # 3 of 4 right, the majority class would get 4 of 4; the standard error of 3 in 4 is 0.2165.
    classes = (
        f"(stamps_short, n = 4): 75.0 % are right. Always giving the majority class would get "
        f"100.0 %, a difference of -25.0 points ({-0.25 / 0.2165:+.1f} standard errors)"
    )
    for text in texts(tmp_path / "out"):
        assert naming in text
        assert classes in text


def test_without_the_control_the_sentences_say_so(evaluation, tmp_path):
    write_report([evaluation(lambda s: "No", "--no-shuffled_control")], [], tmp_path / "out")
    assert texts(tmp_path / "out")[0].count("shuffled pictures were not asked") == 2


def test_a_limited_evaluation_never_has_a_bare_sentence(evaluation, tmp_path):
    run = evaluation(lambda sample: "No", "--limit", "6")
    write_report([run], [], tmp_path / "out")
    markdown = texts(tmp_path / "out")[0]
    assert markdown.count("(stamps_short, NOT ALL OF ITS SAMPLES") == 2
    assert "(LIMITED to 6)" in markdown


def test_markup_in_answers_and_recipes_stays_text(training, evaluation, tmp_path):
    write_report([evaluation(lambda sample: EVIL)], [training()], tmp_path / "out")
    markdown, html = texts(tmp_path / "out")
    assert "<script" not in markdown + html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
    assert r"\| \*\*bold\*\* \[a\](b) &amp; \`c\`" in markdown
    assert "/m/&lt;base&gt;" in html
    assert "<base>" not in html


def test_the_html_needs_nothing_but_itself(training, evaluation, tmp_path):
    write_report([evaluation()], [training()], tmp_path / "out")
    html = texts(tmp_path / "out")[1]
    assert not re.search(r"https?://|file:|url\(|@import|<link|<script|<iframe", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 5 + 3 * 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_markdown_finds_its_pictures(training, evaluation, tmp_path):
    output = tmp_path / "out"
    write_report([evaluation()], [training(), training(name="another")], output)
    named = re.findall(r"!\[\]\(([^)]*)\)", texts(output)[0])
    assert len(named) == len(set(named)) == 5 + 5 + 3 * 4
    assert {output / name for name in named} == set((output / "figures").iterdir())


def test_the_same_files_give_the_same_bytes(training, evaluation, tmp_path):
    run, directory = evaluation(), training()
    written = []
    for name in ("a", "b"):
        write_report([run], [directory], tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]


def test_a_dense_training_has_just_its_loss(training, evaluation, tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "moe"}
    write_report([evaluation()], [training(dense_entries(), config)], tmp_path / "out")
    markdown = texts(tmp_path / "out")[0]
    assert re.findall(r"figures/training\S*\.png", markdown) == ["figures/training-1-loss.png"]
    assert "a dense model" in markdown
    assert "ompetition" not in markdown


@pytest.mark.parametrize("name", ["trainer_state.json", "config.json", "recipe.yaml"])
def test_a_training_without_one_of_its_files_is_refused(training, evaluation, tmp_path, name):
    directory = training()
    (directory / name).unlink()
    with pytest.raises(ValueError, match=rf"no {name} in {directory}: `llava-compete train` write"):
        write_report([evaluation()], [directory], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_without_a_logged_step_is_refused(training):
    with pytest.raises(ValueError, match=r"trainer_state.json logs no step"):
        read_training(training([]))


def test_a_log_that_does_not_fit_its_config_is_refused(training):
    entries = [{k: v for k, v in entry(1).items() if k != "projector/load/2"}]
    run = read_training(training(entries))
    with pytest.raises(ValueError, match=r"no projector/load of each of the 3 experts"):
        summarise(run, run.parts[1])


def test_an_evaluation_without_scores_or_pictures_is_refused(evaluation, data_root, tmp_path):
    run, output = evaluation(), tmp_path / "out"
    data_root.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no picture .*--data_root"):
        write_report([run], [], output)
    write_report([run], [], output, tmp_path / "moved")
    (run / "samples" / "stamps_short.jsonl").unlink()
    with pytest.raises(ValueError, match=r"stamps_short.jsonl: `python -m eval score"):
        write_report([run], [], output, tmp_path / "moved")
    (run / "results.json").unlink()
    with pytest.raises(ValueError, match=r"no results.json"):
        write_report([run], [], output)


def test_the_command_writes_where_it_is_told_and_prints_the_table_otherwise(
    training, evaluation, tmp_path, capsys
):
    run, directory, output = evaluation(), training(), tmp_path / "out"
    capsys.readouterr()
    assert main(["report", str(run), "--training", str(directory), "--output", str(output)]) == 0
    written = [str(output / name) for name in ("report.md", "report.html", "scores.csv")]
    assert capsys.readouterr().out.splitlines() == [*headlines(directory), *written]
    assert main(["report", str(run)]) == 0
    assert "| stamps_choice | accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        main(["report", str(run), "--training", str(directory)])
    assert error.value.code == 2
    assert "--output OUTDIR" in capsys.readouterr().err
