import json

import pytest
import torch

from benchmarks import head, step
from benchmarks.step import Pair
from benchmarks.step_subjects import SUBJECTS, draw_rows, packed, padded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    return Pair(SUBJECTS["tiny"], CPU)


def test_both_ways_have_the_same_rows_and_the_packed_ones_fewer_positions(pair):
    rows = draw_rows(SUBJECTS["tiny"], pair.ours, seed=0)
    plain, ours = padded(rows), packed(rows, SUBJECTS["tiny"].max_length)
    for name in ("attention_mask", "labels"):
        assert (plain[name] > 0).sum() == (ours[name] > 0).sum() > 0
    assert max(ours["input_ids"].shape[1], plain["input_ids"].shape[1]) <= 512
    assert sorted(ours["packing"].lengths)[-3:] == sorted(len(row["input_ids"]) for row in rows)


@pytest.mark.parametrize("kind", step.KINDS)
def test_both_ways_have_the_same_gradient_of_the_language_loss(pair, kind):
    pair.compete(kind)
    pair.plain.weights = dict.fromkeys(pair.plain.weights, 0.0)  # these count padding
    configs = pair.ours.config.moe["language_model"]
    before, configs["loss_weights"] = configs["loss_weights"], pair.plain.weights
    pair.ours.zero_grad()
    pair.plain.zero_grad()
    pair.ours(**pair.packed).loss.backward()
    pair.plain(pair.padded)[0].backward()
    configs["loss_weights"] = before
    ours = dict(pair.ours.named_parameters())
    for name, parameter in pair.plain.model.named_parameters():
        if name in ours and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, ours[name].grad, rtol=1e-3, atol=1e-5)


def test_other_weights_are_no_pair():
    pair = Pair(SUBJECTS["tiny"], CPU)
    with torch.no_grad():
        pair.plain.blocks[0].experts[0].down.weight.mul_(-3)
    with pytest.raises(AssertionError, match="router"):
        pair.check()


def test_a_run_says_how_many_times_faster_and_what_competition_adds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(head, "SHAPES", {"small": (8, 64, True)})
    output = tmp_path / "step.json"
    flags = ["--only", "tiny", "head", "--rounds", "1", "--trace", str(tmp_path / "trace")]
    step.main([*flags, "--output", str(output)])
    found = json.loads(output.read_text())["tiny"]
    assert found["losses"].keys() == set(step.KINDS)
    assert found["ratio"]["median"] > 0
    each = 0.07 * found["layers"] / found["competing"]
    seconds = {run: values["median"] for run, values in found["seconds"].items()}
    amortised = (1 - each) * seconds["ours, router"] + each * seconds["ours, competition"]
    assert found["over_smoe"]["ours"]["median"] == pytest.approx(
        amortised / seconds["ours, router"]
    )
    assert found["peak"]["ours, router"] > 0
    assert "real tokens/s, amortised" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "trace").iterdir()}
    assert names == {f"tiny-{who}.{end}" for who in ("ours", "plain") for end in ("json", "txt")}
