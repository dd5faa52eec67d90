"""The model of a step's cost against plain sums, and the count of collectives."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig

from benchmarks.cost import (
    LANGUAGE,
    Load,
    Sizes,
    break_even,
    collectives,
    expert_parallel_traffic,
    expert_traffic,
    operations,
    sent,
    simulated,
    sizes,
)
from benchmarks.scaling import main
from benchmarks.scaling_figure import draw
from benchmarks.scaling_tables import Line, at, fit, points
from benchmarks.traffic import Traffic
from benchmarks.traffic_cases import measure
from llava_compete import MoEConfig
from llava_compete.count import count
from llava_compete.model import LlavaCompeteConfig
from tests import tiny

WIDTH, HIDDEN, LAYERS = 32, 64, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LlavaCompeteConfig:
    vision, _ = tiny.make_tower(tmp_path_factory.mktemp("tower"))
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=96,
        tie_word_embeddings=False,
    )
    moe = {LANGUAGE: MoEConfig(num_experts=8, top_k=2).to_dict()}
    return LlavaCompeteConfig(text_config=text, vision_config=vision.to_dict(), moe=moe)


def test_competition_adds_the_losers_on_all_tokens(config):
    load = Load(rows=2, length=50, rate=0.25, cap=1, checkpointing=False)
    found = operations(config, load)
    losers = 8 - 2
    of_a_layer = 3 * load.tokens * losers * 2 * 3 * WIDTH * HIDDEN
    assert found.slowest - found.router == pytest.approx(of_a_layer)
    assert found.mean - found.router == pytest.approx(load.rate * LAYERS * of_a_layer)


def test_operations_of_a_router_step_are_the_counts_and_attention(config):
    load = Load(rows=2, length=50)
    counts = count(config)
    picture = {part: 2 * found.flops_picture for part, found in counts.items()}
    text = 2 * (50 - config.vision.num_patches) * counts[LANGUAGE].flops_text_token
    scores = sum(
        2 * 2 * WIDTH * position for _ in range(LAYERS) for _ in range(2) for position in range(50)
    )
    expected = picture["vision"] + 3 * picture["projector"] + 4 * (picture[LANGUAGE] + text)
    found = operations(config, load).router
    assert found == pytest.approx(expected + 4 * scores, rel=0.01)  # the diagonal counts half


def test_operations_follow_tokens_and_not_experts(config):
    load = Load(length=64)
    once, twice = (operations(config, replace(load, rows=rows)).router for rows in (2, 4))
    assert twice == 2 * once
    more = LlavaCompeteConfig(
        text_config=config.text_config,
        vision_config=config.vision_config,
        moe={LANGUAGE: MoEConfig(num_experts=16, top_k=2).to_dict()},
    )
    gates = 4 * 2 * load.tokens * LAYERS * WIDTH * 8
    assert operations(more, load).router - operations(config, load).router == gates
    assert sizes(more).experts == 2 * sizes(config).experts == 2 * LAYERS * 8 * 3 * WIDTH * HIDDEN


def test_experts_elsewhere_are_refused(config):
    moe = {"projector": MoEConfig().to_dict()}
    other = LlavaCompeteConfig(
        text_config=config.text_config, vision_config=config.vision_config, moe=moe
    )
    with pytest.raises(ValueError, match="projector"):
        operations(other, Load())


def test_bytes_of_the_stages():
    of = Sizes(parameters=120, trained=100, experts=80)
    stage = {"checkpointing": False, "competing": 0.0}
    for name in ("zero1", "zero2"):
        assert sent(collectives(name, of, 2, **stage), ranks=4) == 3 * 200 * 3 / 4
        assert sent(collectives(name, of, 2, **stage, owners=True), ranks=4) == 2 * 200 * 3 / 4
    assert sent(collectives("zero3", of, 2, **stage), ranks=4) == (2 * 240 + 200) * 3 / 4
    again = {
        share: collectives("zero3", of, 1, checkpointing=True, competing=share)["all-gather"]
        for share in (0.0, 0.5, 1.0)
    }
    assert again == {0.0: 240 + 20, 0.5: 240 + 60, 1.0: 240 + 100}
    with pytest.raises(ValueError, match="zero4"):
        collectives("zero4", of, 2, **stage)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_at_the_break_even_both_send_the_same(config, checkpointing):
    load = Load(length=64, ranks=2**20, rate=0.1, checkpointing=checkpointing)
    even = break_even(config, load)
    for parallel in (2, 4, 8):
        for rows, less in ((0.9, True), (1.1, False)):
            near = replace(load, rows=rows * even / load.length)
            moved = expert_parallel_traffic(config, near, parallel)
            assert (moved < expert_traffic(config, near)) == less


@pytest.mark.parametrize(("layers", "rate", "cap"), [(32, 0.07, 3), (10, 0.2, 2)])
def test_layers_compete_at_the_rate_below_the_cap(layers, rate, cap):
    mean, most = simulated(layers, rate, cap, steps=3000)
    assert mean == pytest.approx(rate, abs=4 * (rate * (1 - rate) / (3000 * layers)) ** 0.5)
    assert most == cap


def test_bytes_of_collectives_are_of_whole_tensors(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    numbers, whole = torch.ones(6), torch.empty(6)
    traffic = Traffic()
    try:
        with traffic:
            dist.all_reduce(numbers)
            dist.all_reduce(numbers.bfloat16())
            dist.all_gather_into_tensor(whole, numbers)
            dist.all_gather([whole], numbers)
            dist.reduce_scatter_tensor(whole, numbers)
            dist.reduce(numbers, 0)
            dist.barrier()
    finally:
        dist.destroy_process_group()
    expected = {"all-reduce": 24 + 12, "all-gather": 48, "reduce-scatter": 24, "reduce": 24}
    assert traffic.bytes == expected


def write_curves(path: Path, line: Line) -> Path:
    axes = {"experts, 8192 tokens": (4, 32, 128), "tokens, 4 experts": (512, 8192)}
    curves = {
        axis: {"ours": {place: {"seconds": {"median": line(at(axis, place))}} for place in places}}
        for axis, places in axes.items()
    }
    path.write_text(json.dumps({"curves": curves}))
    return path


def test_the_line_is_found_and_drawn(tmp_path, capsys):
    line = Line(pair=3e-5, expert=5e-3)
    curves = write_curves(tmp_path / "moe.json", line)
    found = fit(points(curves))
    assert (found.pair, found.expert) == pytest.approx((line.pair, line.expert))
    words = ["--parts", "layer", "--curves", str(curves), "--json", str(tmp_path / "found.json")]
    main(words)
    rows = json.loads((tmp_path / "found.json").read_text())["layer"]
    assert rows[0]["measured / line"] == pytest.approx(1.0)
    assert "per token and expert" in capsys.readouterr().out
    draw(curves, tmp_path / "scaling.svg")
    assert "<svg" in (tmp_path / "scaling.svg").read_text()


def test_curves_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="--parts curves"):
        points(tmp_path / "moe.json")


@pytest.mark.slow
def test_deepspeed_moves_what_the_model_says(tmp_path):
    from benchmarks.traffic_cases import beside_model

    for name, found in measure(tmp_path, ("ZeRO-1", "ZeRO-3")).items():
        assert found["competing"][0] == 0 < found["competing"][-1]
        for row in beside_model(name, found):
            assert row[-1] == pytest.approx(1.0, abs=0.02), row
