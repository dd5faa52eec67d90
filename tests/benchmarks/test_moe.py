"""The layers that are measured against each other compute the same."""

import json

import pytest
import torch
from torch.testing import assert_close

from benchmarks import moe, moe_memory
from benchmarks.ceiling import Floor, Product
from benchmarks.looped import LoopedLayer
from benchmarks.memory import account, peak_of_process
from benchmarks.moe_cases import BASE, CANDIDATES, Case, MixtralLayer, as_linear, cases, source
from benchmarks.steps import Seconds, Step, group_sizes, losses_of

CPU = torch.device("cpu")


def small(**changes):
    return Case(**{"dtype": "float32", "width": 16, "hidden": 24, "tokens": 40, **changes})


def outcome(layer, case):
    """Output, losses and gradients by name, those of weights as torch's Linear has them."""
    step = Step(layer, case, CPU)
    graph = step.forward()
    step.backward(graph)
    found = {"output": graph.y_TD.detach(), "x": step.x_TD.grad}
    found |= {name: loss.detach() for name, loss in losses_of(layer).items()}
    found["gate"] = (layer if isinstance(layer, LoopedLayer) else layer.router).gate.weight.grad
    if isinstance(layer, LoopedLayer):
        up = [expert.up.weight.grad for expert in layer.experts]
        if case.gated:
            up = [torch.cat([e.gate.weight.grad, e.up.weight.grad]) for e in layer.experts]
        down = [expert.down.weight.grad for expert in layer.experts]
        return found | {"first": torch.stack(up), "down": torch.stack(down)}
    grads = {name: weight.grad for name, weight in layer.experts.named_parameters()}
    if isinstance(layer, MixtralLayer):
        return found | {"first": grads["gate_up_proj"], "down": grads["down_proj"]}
    return found | dict(zip(("first", "down"), as_linear(grads), strict=True))


def comparisons():
    for name in CANDIDATES:
        for step in ("router", "competition"):
            for gated in (True, False):
                case = small(step=step, gated=gated)
                candidate = CANDIDATES[name]
                if name != "ours" and candidate.exact and candidate.stands(case):
                    yield pytest.param(name, case, id=f"{name} {step} {gated}")


@pytest.mark.parametrize(("candidate", "case"), list(comparisons()))
def test_candidates_compute_the_layer_and_its_gradients(candidate, case):
    given = source(case, CPU)
    wanted = outcome(CANDIDATES["ours"].build(given, case), case)
    found = outcome(CANDIDATES[candidate].build(given, case), case)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("step", ["router", "competition"])
def test_the_loop_is_the_layer_in_float64(monkeypatch, step):
    """To what the sums that the library takes in float32 leave of it."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    case = small(step=step, dtype="float64", experts=5, top_k=3)
    given = source(case, CPU)
    wanted, found = (outcome(CANDIDATES[n].build(given, case), case) for n in ("ours", BASE))
    for name, value in wanted.items():
        assert_close(found[name], value, atol=5e-7, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_loop_runs_winners_twice():
    case = small(step="competition")
    layer = CANDIDATES[BASE].build(source(case, CPU), case)
    rows = []
    for expert in layer.experts:
        expert.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    Step(layer, case, CPU)()
    assert rows[:4] == [case.tokens] * 4
    assert sum(rows[4:]) == case.tokens * case.top_k


def test_the_floor_is_the_products_of_the_step(monkeypatch):
    case = small()
    sizes = group_sizes(source(case, CPU).layer, case, CPU)
    assert sum(sizes) == case.tokens * case.top_k
    floor, flops, plain = Floor(case, sizes, CPU), [], torch.mm

    def counted(left, right, out):
        flops.append(2 * left.shape[0] * left.shape[1] * right.shape[1])
        return plain(left, right, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    floor()
    assert sum(flops) == case.flops(backward=True)
    assert sum(flops[: 2 * len(sizes)]) == case.flops(backward=False)
    assert Product(3, 4, 5, torch.float32, CPU).flops == 2 * 3 * 4 * 5


def test_the_account_has_what_lives_and_what_lived_at_once():
    def work():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first
        return second, torch.empty(200, dtype=torch.uint8)

    found = account(work, CPU)
    assert (found.most, found.left) == (1500, 700)


def test_batched_mm_stands_where_its_copies_of_weights_fit():
    copies = CANDIDATES["transformers batched_mm"]
    assert copies.gathered(Case()) == 2048 * 2 * 3 * 512 * 1408 * 2
    assert copies.stands(Case(tokens=8))
    assert not copies.stands(Case(tokens=2**20))
    assert not copies.stands(Case(tokens=8, step="competition"))


def test_a_process_grows_by_what_it_takes_at_once():
    size = 2**26
    grown = peak_of_process(lambda: torch.empty(size, dtype=torch.uint8).fill_(1))
    assert size <= grown < 1.2 * size


def test_a_run_writes_all_its_parts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(moe_memory, "_of_process", lambda candidate, case: 1.0)
    output, figure = tmp_path / "moe.json", tmp_path / "moe.png"
    threads = str(torch.get_num_threads())
    moe.main(
        [
            *("--quick", "--rounds", "1", "--threads", threads, "--device", "cpu"),
            *("--output", str(output), "--figure", str(figure)),
        ]
    )
    found = json.loads(output.read_text())
    assert set(moe.PARTS) <= set(found)
    assert set(found["speed"]) == set(found["memory"]) == {c.name for c in cases(quick=True)}
    for case in found["speed"].values():
        for passes in case["candidates"].values():
            assert set(passes) == set(Seconds._fields)
        assert case["candidates"][BASE]["both"]["times_faster"]["median"] == 1
    held = found["memory"][cases(quick=True)[1].name]
    assert held["ours"]["held"] < held[BASE]["held"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "times faster" in capsys.readouterr().out
    moe.main(["--tables", str(output)])
    printed = capsys.readouterr().out
    assert "| router step, forward and backward: times as fast as the loop |" in printed
    for block in printed.split("\n\n")[:-1]:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_name_that_no_case_has(tmp_path):
    with pytest.raises(ValueError, match=r"--only 'bfloat17' is in no case's name; the cases are"):
        moe.main(["--only", "bfloat17", "--output", str(tmp_path / "moe.json")])
