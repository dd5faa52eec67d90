"""Nothing here reaches a network or a GPU by accident; tiny models as factory fixtures."""

# ruff: noqa: E402 (the libraries read these variables when they are imported)

import os
import sys
from pathlib import Path

# What DeepSpeed compiles belongs to an environment, as scripts/train.sh has it.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
torch.set_num_threads(1)

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlavaProcessor

from llava_compete import LlavaCompeteForConditionalGeneration, upcycle_model
from tests import tiny

Pair = tuple[LlavaCompeteForConditionalGeneration, LlavaProcessor]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: none of them is left for one worker when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """accelerate collects garbage in each training: not in a million objects of imports."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def row_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables of rows stay out of the user's home."""
    os.environ["LLAVA_COMPETE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def dense(tmp_path: Path) -> Callable[..., Pair]:
    """``dense(family="llama")``: a fresh dense model, in evaluation mode, and its processor."""
    count = itertools.count()

    def build(family: str = "llama") -> Pair:
        return tiny.compose_tiny(tmp_path / f"parts-{next(count)}", family)

    return build


@pytest.fixture
def moe(dense: Callable[..., Pair]) -> Callable[..., Pair]:
    """``moe(family, perturbation=..., parts=..., **moe_values)``: a model with experts."""

    def build(
        family: str = "llama", *, perturbation: float = 0.5, parts: Any = tiny.PARTS, **values: Any
    ) -> Pair:
        model, processor = dense(family)
        upcycle_model(model, tiny.moe_configs(parts, **values), perturbation=perturbation)
        return model, processor

    return build


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    """The tiny model's processor; not to be changed by a test."""
    return tiny.compose_tiny(tmp_path_factory.mktemp("processor"))[1]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint directories ``dense`` and ``moe`` of the same llama; not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "dense": tiny.make_checkpoint(root / "dense", moe=False),
        "moe": tiny.make_checkpoint(root / "moe"),
    }
