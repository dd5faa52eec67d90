"""What a recipe takes: the formulas, the rehearsal, and the peak of a real training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plan import measured
from llava_compete import load
from llava_compete.__main__ import main
from llava_compete.checkpoint import read_config
from llava_compete.moe.routers import ROUTERS
from llava_compete.plan import USABLE, as_table, plan_of
from llava_compete.rehearsal import Rehearsal
from tests import tiny
from tests.training.recipes import argv

REPOSITORY = Path(__file__).parents[1]
LENGTH = 400


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    """Rows of one length, cut to LENGTH tokens; every layer may compete."""
    images = tmp_path / "images"
    images.mkdir()
    tiny.draw(1).save(images / "1.png")
    said = [
        {"from": "human", "value": "<image>\n?"},
        {"from": "gpt", "value": "box " * LENGTH},
    ]
    rows = [{"id": str(i), "image": "1.png", "conversations": said} for i in range(16)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "checkpoint": str(checkpoints["moe"]),
        "trainable": ["projector", "language_model"],
        "data_path": str(tmp_path / "rows.json"),
        "image_folder": str(images),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 2,
        "max_length": LENGTH,
        "max_steps": 2,
        "competition_rate": 1.0,
        "competition_max_layers": 3,
        "competition_warmup": 0,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation_checkpointing": True}, {"gradient_accumulation_steps": 2}],
    ids=["plain", "checkpointing", "accumulation"],
)
def test_the_plan_is_within_15_percent_of_the_peak(
    recipe: dict[str, Any], changes: dict[str, Any]
) -> None:
    words = argv(recipe, **changes)
    planned = plan_of(words, gpus=1).own.total
    assert planned == pytest.approx(measured(Path(words[0])), rel=0.15)


def test_stages_share_what_they_share(recipe: dict[str, Any]) -> None:
    model, _ = load(recipe["checkpoint"])
    every = sum(x.numel() for x in model.parameters())
    trained = sum(x.numel() for x in model.parameters()) - sum(
        x.numel() for x in model.vision.parameters()
    )
    plan = plan_of([*argv(recipe), "--bf16", "true"], gpus=4)
    assert (plan.parameters, plan.trained) == (every, trained)
    none, zero1, zero2, zero3, offload = plan.ranks.values()
    share = -(-trained // 4)
    assert (none.parameters, none.gradients, none.optimizer) == (
        4 * every,
        8 * trained,  # and the buckets
        8 * trained,
    )
    assert (zero1.parameters, zero1.gradients, zero1.optimizer) == (
        2 * every,
        2 * trained,
        12 * share,
    )
    assert (zero2.gradients, zero2.optimizer) == (2 * share, 12 * share)
    assert zero3.parameters == 2 * every // 4 + 2 * every  # all of so few are gathered at once
    assert (offload.parameters, offload.optimizer) == (2 * every, 0)


def test_the_rows_that_fit_fit_and_one_more_does_not(recipe: dict[str, Any]) -> None:
    memory = 0.05
    rank = plan_of(argv(recipe), gpus=1, gpu_memory=memory).ranks["zero2"]
    assert rank.rows > 1
    totals = [
        plan_of(argv(recipe, per_device_train_batch_size=rows), gpus=1).ranks["zero2"].total
        for rows in (rank.rows, rank.rows + 1)
    ]
    assert totals[0] <= USABLE * memory * 2**30 * 1.01
    assert totals[1] >= USABLE * memory * 2**30 * 0.99


def test_competition_takes_more_and_without_it_nothing(recipe: dict[str, Any]) -> None:
    competing = plan_of(argv(recipe), gpus=1).own
    assert 0 < competing.competition < competing.activations
    quiet = plan_of(argv(recipe, competition_rate=0.0), gpus=1).own
    assert quiet.competition == 0
    assert quiet.activations == competing.activations - competing.competition


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_can_be_rehearsed(router: str, checkpoints: dict[str, Path]) -> None:
    config = read_config(checkpoints["moe"])
    config.moe = {"language_model": {"num_experts": 4, "top_k": 2, "router": router}}
    rehearsal = Rehearsal(
        config,
        trainable=["language_model"],
        dtype=torch.bfloat16,
        autocast=False,
        checkpointing=False,
    )
    quiet = [False] * len(rehearsal.model.competitors())
    one, two = (rehearsal.peak(rows, 32, quiet).streamed for rows in (1, 2))
    assert 0 < one < two


def test_the_verb_marks_the_stage_of_the_recipe_and_needs_no_weights(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    source = Path(recipe["checkpoint"]) / "config.json"
    (bare / "config.json").write_text(source.read_text())
    zero = str(REPOSITORY / "zero_configs" / "zero3.json")
    words = argv(recipe, checkpoint=str(bare), deepspeed=zero, data_path="absent")
    main(["plan", *words, "--gpus", "2", "--gpu-memory", "0.001"])
    said = capsys.readouterr().out
    assert "| zero3 (recipe) |" in said
    assert "| no | 0 |" in said
    assert as_table(plan_of(words, 2, 0.001), 0.001) in said


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"optim": "adafactor"}, "plan knows the states of adamw_torch, not.*adafactor"),
        ({"max_length": 4}, "max_length=4 has no room beside a picture of 4 tokens"),
        ({"lora": {"r": 2}}, "plan does not know lora"),
    ],
)
def test_what_it_cannot_plan_is_refused(
    recipe: dict[str, Any], changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        plan_of(argv(recipe, **changes), gpus=1)
