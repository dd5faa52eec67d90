"""Gates that learn a competition: forms, bound, tasks, and one tiny training."""

import json

import pytest
import torch
from torch.testing import assert_close

from experiments import agreement
from experiments.agreement import gates, report, sweep, tasks, training
from llava_compete.data import LlavaDataset
from tests import tiny

T, E, K, D = 40, 4, 2, 6


@pytest.fixture
def outcomes():
    """Affinities that a linear gate can predict, and that hardly differ, as after upcycling."""
    features_TD = torch.randn(3000, D)
    return gates.Outcomes(features_TD, 0.8 + 1e-3 * features_TD @ torch.randn(D, E))


def test_standardised_affinities_equal_the_loop(outcomes):
    affinity_TE = outcomes.affinity_TE[:T]
    for got_E, row_E in zip(gates.standardised(affinity_TE), affinity_TE.tolist(), strict=True):
        mean = sum(row_E) / E
        deviation = (sum((s - mean) ** 2 for s in row_E) / (E - 1)) ** 0.5
        wanted = torch.tensor([(s - mean) / deviation for s in row_E])
        assert_close(got_E, wanted, atol=1e-3, rtol=1e-3)  # float32 affinities near 0.8


@pytest.mark.parametrize("form", gates.FORMS)
def test_every_form_is_least_where_the_gate_ranks_as_the_competition(form, outcomes):
    seen = gates.Outcomes(outcomes.features_TD[:T], outcomes.affinity_TE[:T])
    loss = gates.FORMS[form]
    good_TE = gates.standardised(seen.affinity_TE)
    scale = 1e-3 if form == "paper" else 1.0  # its target is all but uniform
    assert loss(scale * good_TE, seen.affinity_TE, K) < loss(-scale * good_TE, seen.affinity_TE, K)


def test_the_bound_finds_a_linear_rule_and_chance_where_there_is_none(outcomes):
    seen, unseen = outcomes.split(0.75)
    assert gates.linear_bound(seen, unseen, K) > 0.95
    shuffled = gates.Outcomes(seen.features_TD, seen.affinity_TE[torch.randperm(2250)])
    assert abs(gates.linear_bound(shuffled, unseen, K) - K / E) < 0.15


def test_the_outcome_form_learns_what_the_published_form_does_not(outcomes):
    seen, unseen = outcomes.split(0.75)
    reached = {}
    for form in ("paper", "outcome"):
        gate = gates.make_gate(D, E, seed=1)
        settings = {"top_k": K, "steps": 60, "tokens": 256, "learning_rate": 3e-2}
        gates.distil(gate, seen, gates.FORMS[form], **settings)
        reached[form] = gates.held_out_agreement(gate, unseen, K)
    assert reached["outcome"] > 0.9 > 0.8 > reached["paper"]


@pytest.mark.parametrize("recipe", [{"perturbation": 0.1}, {"dropped": 0.5}])
def test_synthetic_experts_differ_and_their_tokens_have_norm_one(recipe):
    found = tasks.synthetic(**recipe, tokens=T, seed=0)
    assert_close(found.features_TD.square().mean(dim=-1), torch.ones(T))
    assert (found.affinity_TE.std(dim=-1) > 0).all()
    assert torch.equal(found.affinity_TE, tasks.synthetic(**recipe, tokens=T, seed=0).affinity_TE)
    alike = tasks.synthetic(tokens=T, seed=0).affinity_TE
    assert_close(alike, alike[:, :1].expand(-1, E), atol=1e-6, rtol=0)


def test_the_sweep_has_a_row_for_each_setting_and_its_table_the_means(outcomes, monkeypatch):
    monkeypatch.setattr(sweep, "STEPS", (2,))
    monkeypatch.setattr(report, "STEPS", (2,))
    rows = [{"task": "a", **row} for row in sweep.sweep(outcomes, seed=0)]
    assert len(rows) == (len(gates.FORMS) + 1) * len(sweep.RATES)
    best = max(row["agreement"] / row["bound"] for row in rows if row["form"] == "paper")
    assert f"| paper | {best:.2f}" in report.sweep_table(rows)
    assert "| a |" in report.task_table(rows)


def test_a_training_leaves_its_curve_bound_and_report_and_is_not_run_again(tmp_path, monkeypatch):
    checkpoint = tiny.make_checkpoint(tmp_path / "moe")
    rows, images = tiny.write_rows(tmp_path, 6)
    monkeypatch.setattr(training, "EVERY", 1)
    recipe = tmp_path / "recipe.yaml"
    values = {
        "checkpoint": checkpoint,
        "output_dir": tmp_path / "unused",
        "data_path": rows,
        "image_folder": images,
        "trainable": ["experts", "routers"],
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "competition_rate": 1.0,
        "competition_max_layers": 3,
        "competition_warmup": 0,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    recipe.write_text(
        "".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in values.items())
    )
    settings = ["outcome, weight 1", rows, images, tmp_path / "out" / "training"]
    record = training.train_setting(settings[0], [str(recipe)], *settings[1:])
    assert [point["step"] for point in record["curve"]] == [0, 1, 2]
    for point in record["curve"]:
        assert 0 <= point["language_model"] <= 1
        assert 0 <= point["projector"] <= 1
    assert set(record["bound"]) == {"language_model", "projector"}
    assert [step for step, _ in record["language"]] == [1, 2]
    again = training.train_setting(settings[0], ["no such recipe"], *settings[1:])
    assert again == json.loads(json.dumps(record))
    text = report.write(tmp_path / "out")
    assert "| outcome, weight 1 |" in text
    assert (tmp_path / "out" / "agreement.png").stat().st_size > 1000


def test_measuring_leaves_no_hook_and_the_mode_as_it_was(moe, tmp_path):
    model, processor = moe()
    rows, images = tiny.write_rows(tmp_path, 3)
    dataset = LlavaDataset(rows, images, processor, 512)
    callback = training.HeldOutAgreement(model.train(), processor, dataset, K)
    callback.measure(0)
    assert model.training
    for layers in model.moe_layers().values():
        assert not any(layer._forward_hooks for layer in layers)


def test_an_unknown_setting_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="'papr' is not known"):
        agreement.main(["--out", str(tmp_path), "--settings", "papr"])
    with pytest.raises(SystemExit, match=r"held_out .*nowhere does not exist"):
        agreement.held_out_rows(tmp_path / "nowhere", tmp_path / "rows.json")
