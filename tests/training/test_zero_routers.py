"""With every router, ZeRO-3 in two gloo processes is plain data-parallel training, is one process.

The one process has both ranks' batches by gradient accumulation.
"""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_compete import ROUTERS, save, upcycle_model
from tests import tiny
from tests.training.launches import REPOSITORY, free_port, launch, run, train
from tests.training.recipes import argv, for_two_ranks, logged_steps

pytestmark = pytest.mark.slow

STEPS = 3
ZERO3 = str(REPOSITORY / "zero_configs" / "zero3.json")
RUNS = {  # flags of each kind of run
    "data_parallel": [],
    # What checkpointing runs again must neither change a choice nor count a token twice.
    "zero3": ["--deepspeed", ZERO3, "--activation_checkpointing", "true"],
    "one_process": ["--gradient_accumulation_steps", "2"],
}
every_router = pytest.mark.parametrize("router", ROUTERS)


def write_checkpoint(dense: tuple, router: str, folder: Path) -> None:
    """Experts that differ, gates and routing state that are not those of a fresh model."""
    model, processor = copy.deepcopy(dense)
    config = tiny.moe_configs(("language_model",), router=router)
    upcycle_model(model, config, perturbation=1.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if ".router." in name and tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    save(model, processor, folder)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A recipe for each router; rank 1 sees text alone and routes to other experts."""
    root = tmp_path_factory.mktemp("routers")
    dense = tiny.compose_tiny(root / "parts")
    recipe = for_two_ranks(root, root / "of each router", STEPS)
    recipes = []
    for router in ROUTERS:
        write_checkpoint(dense, router, root / router)
        own = {"checkpoint": str(root / router), "output_dir": str(root / router)}
        recipes.append(Path(*argv(recipe, **own)))
    return recipes


@pytest.fixture(scope="module")
def trainings(recipes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of run, in which each router has its run."""
    root = tmp_path_factory.mktemp("runs")
    for kind, flags in RUNS.items():
        words = [str(root / kind), *map(str, recipes), "--", *flags]
        launch("tests.training.train_each", words, processes=1 if kind == "one_process" else 2)
    return {kind: root / kind for kind in RUNS}


def saved(training: Path) -> dict[str, torch.Tensor]:
    return load_file(training / "model.safetensors")


@every_router
@pytest.mark.parametrize("kind", ["zero3", "one_process"])
def test_losses_loads_and_state_are_those_of_data_parallel_training(
    router: str, kind: str, trainings: dict[str, Path]
) -> None:
    plain, other = (trainings[name] / router for name in ("data_parallel", kind))
    entries = list(zip(logged_steps(plain), logged_steps(other), strict=True))
    assert len(entries) == STEPS
    for wanted, got in entries:
        assert any(name.startswith("language_model/load/") for name in wanted)
        # The time of a step is not a loss; ZeRO-3's gradient norm is of its own shards' order.
        for name in wanted.keys() - {"step_seconds", "grad_norm"}:
            assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    weights, again = saved(plain), saved(other)
    assert {name: value.shape for name, value in again.items()} == {
        name: value.shape for name, value in weights.items()
    }
    for name, value in weights.items():
        if ".router.state_" in name:  # assert_close compares dtypes too
            torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-4)


@every_router
def test_the_training_moves_the_router(
    router: str, recipes: list[Path], trainings: dict[str, Path]
) -> None:
    before = saved(recipes[0].parent / router)
    after = saved(trainings["data_parallel"] / router)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for layer in range(2):
        assert any(f"layers.{layer}.mlp.router." in name for name in changed)
    log = logged_steps(trainings["data_parallel"] / router)
    assert log[-1]["loss"] < log[0]["loss"]


def test_zero3_starts_with_a_fresh_router_whose_gate_has_another_shape(
    recipes: list[Path], tmp_path: Path
) -> None:
    """shared_v3 has no row for the shared expert."""
    compete = next(recipe for recipe in recipes if recipe.stem == "compete")
    fresh = ["--router", "shared_v3", "--fresh_routers", "true", "--max_steps", "2"]
    plain = train(compete, tmp_path / "plain", *fresh, processes=1)
    zero3 = [*fresh, "--deepspeed", ZERO3]
    sharded = train(compete, tmp_path / "zero3", *zero3, processes=1)
    assert [e["loss"] for e in sharded] == pytest.approx([e["loss"] for e in plain], rel=1e-4)
    gate = "language_model.model.layers.0.mlp.router.gate.weight"
    before, after = saved(compete.parent / "compete")[gate], saved(tmp_path / "zero3")[gate]
    assert after.shape[0] == before.shape[0] - 1
    torch.testing.assert_close(after, saved(tmp_path / "plain")[gate], rtol=1e-3, atol=1e-4)


def test_state_keeps_its_dtype_where_zero3_builds_the_model_in_bfloat16() -> None:
    code = """
import json, os, sys
os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1]
)
from dataclasses import replace
import deepspeed
from llava_compete.moe import ROUTERS
from llava_compete.moe.routers import RouterSpec
deepspeed.init_distributed("gloo")
config = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}, "train_batch_size": 1}
found = {}
for name, router in ROUTERS.items():
    vocabulary = 6 if router.needs_token_ids else None
    spec = RouterSpec(8, 8, num_experts=4, top_k=2, seed=0, vocab_size=vocabulary)
    for kind in ("plain", "zero3"):
        with deepspeed.zero.Init(config_dict_or_path=config, enabled=kind == "zero3"):
            built = router(replace(spec, previous=router(spec)))
        found[f"{name} {kind}"] = {key: str(value.dtype) for key, value in built.named_buffers()}
print("FOUND" + json.dumps(found))
"""
    output = run([sys.executable, "-c", code, str(free_port())]).stdout
    found = json.loads(output.split("FOUND")[-1])
    for router in ROUTERS:
        assert found[f"{router} zero3"] == found[f"{router} plain"], router
    assert found["acmoe zero3"]["state_scale_ED"] == "torch.float32"
