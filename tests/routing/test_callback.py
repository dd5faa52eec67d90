"""Routing figures in a training: at their steps, at no other, and without moving it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL.Image import Image

from llava_compete.routing.callback import SCALARS, RoutingCallback
from llava_compete.training.prepare import prepare
from tests import tiny


@pytest.fixture
def trainer(tmp_path: Path, checkpoints: dict[str, Path]) -> Any:
    """``trainer(**keys)``: of four steps on six rows, one of them without a picture."""
    rows, images = tiny.write_rows(tmp_path, n=6, text_only=(1,))
    recipe = {
        "checkpoint": str(checkpoints["moe"]),
        "trainable": ["projector", "language_model"],
        "data_path": str(rows),
        "image_folder": str(images),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "competition_rate": 0.3,
        "competition_warmup": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }

    count = itertools.count()

    def build(**keys: Any) -> Any:
        output = tmp_path / f"run-{next(count)}"
        file = output.with_suffix(".yaml")
        file.write_text(yaml.safe_dump({**recipe, "output_dir": str(output), **keys}))
        return prepare([str(file)])[0]

    return build


def logs(trainer: Any) -> list[dict[str, Any]]:
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def figure_names(entry: dict[str, Any]) -> set[str]:
    return {name for name in entry if "/layer_" in name}


def wanted_names() -> set[str]:
    layers = [("language_model", n, ("image", "text", "answer", "all")) for n in (0, 1)]
    layers.append(("projector", 0, ("image", "all")))
    names = {
        f"{part}/layer_{layer}/{kind}/{figure}"
        for part, layer, kinds in layers
        for kind in kinds
        for figure in SCALARS
    }
    return names | {"language_model/layer_0/gap", "language_model/layer_1/gap"}


def test_figures_stand_in_the_log_of_their_steps(trainer: Any) -> None:
    found = logs(trainer(routing_steps=2))
    assert [entry["step"] for entry in found] == [1, 2, 3, 4]
    assert [figure_names(entry) for entry in found[::2]] == [set(), set()]
    assert figure_names(found[1]) == wanted_names()
    for name in figure_names(found[1]):
        assert 0 <= found[1][name] < 10
        if name.endswith(("entropy", "agreement", "relative_margin")):
            assert found[1][name] <= 1 + 1e-6


def test_their_step_is_logged_also_where_the_log_would_have_waited(trainer: Any) -> None:
    found = logs(trainer(routing_steps=2, logging_steps=3))
    assert [entry["step"] for entry in found] == [2, 3, 4]
    assert [bool(figure_names(entry)) for entry in found] == [True, False, True]
    assert all("language_model/load/0" in entry for entry in found)


def test_a_layer_that_competes_in_the_step_is_left_out(trainer: Any) -> None:
    keys = {"competition_rate": 0.5, "competition_warmup": 0, "competition_max_layers": 2}
    found = logs(trainer(routing_steps=1, **keys))
    for entry in found:
        layers = {name.rsplit("/", 2)[0] for name in figure_names(entry) if "/all/" in name}
        competing = sum(entry[f"{part}/competing_layers"] for part in tiny.PARTS)
        assert len(layers) == 3 - competing
    assert any(entry["language_model/competing_layers"] for entry in found)


def test_watching_moves_no_loss_and_leaves_no_hook(trainer: Any) -> None:
    plain, watched = trainer(), trainer(routing_steps=2)
    losses = [[entry["loss"] for entry in logs(each)] for each in (plain, watched)]
    assert losses[0] == losses[1]
    for layers in watched.model.moe_layers().values():
        assert all(not layer._forward_hooks for layer in layers)
    pairs = zip(plain.model.parameters(), watched.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_off_nothing_is_registered(trainer: Any) -> None:
    def callbacks(**keys: Any) -> list[type]:
        return [type(callback) for callback in trainer(**keys).callback_handler.callbacks]

    assert RoutingCallback not in callbacks()
    assert RoutingCallback in callbacks(routing_steps=5)


def test_wandb_gets_the_charts_of_their_steps(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.log", sent.append)
    monkeypatch.setattr("wandb.Image", lambda image: image)
    built = trainer(routing_steps=4)
    built.args.report_to = ["wandb"]
    built.train()
    (charts,) = sent
    assert charts.pop("train/global_step") == 4
    assert {name.split("/")[1] for name in charts} == set(tiny.PARTS)
    assert "routing/language_model/load" in charts
    assert all(isinstance(image, Image) for image in charts.values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"routing_steps": -1}, "routing_steps=-1 must be 0"),
        ({"routing_steps": 3, "checkpoint": "dense"}, "routing_steps=3: a dense checkpoint has no"),
    ],
)
def test_steps_that_cannot_be_are_refused(
    trainer: Any, checkpoints: dict[str, Path], keys: dict[str, Any], message: str
) -> None:
    if "checkpoint" in keys:
        keys = {**keys, "checkpoint": str(checkpoints["dense"])}
    with pytest.raises(ValueError, match=message):
        trainer(**keys)
