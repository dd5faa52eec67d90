"""All figures of a checkpoint over rows: whatever the batches, and against another checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from llava_compete import upcycle_model
from llava_compete.data import LlavaDataset
from llava_compete.routing.collect import Collector, batches, check_comparable, choose_rows, plain
from tests import tiny


@pytest.fixture
def data(tmp_path: Path, processor) -> LlavaDataset:
    rows, images = tiny.write_rows(tmp_path, n=6, text_only=(1,))
    return LlavaDataset(rows, images, processor)


def figures(model, dataset, *, other=None, batch_size=3, rows=None):
    collector = Collector(model, other, map_files=["0.png", "3.png"])
    for batch, files in batches(dataset, dataset.processor, choose_rows(dataset, rows), batch_size):
        collector.add(batch, files)
    return collector.figures(dataset.processor)


def numbers(value, name=""):
    """Every number with the way to it."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in numbers(value[key], f"{name}/{key}").items()}
    if isinstance(value, list):
        return {
            k: v for i, item in enumerate(value) for k, v in numbers(item, f"{name}/{i}").items()
        }
    return {name: value}


def test_batches_change_no_figure(moe, data):
    model, _ = moe()
    one, three = (numbers(figures(model, data, batch_size=size)) for size in (1, 3))
    assert list(one) == list(three)
    for name, value in one.items():
        near = isinstance(value, float)
        assert value == (pytest.approx(three[name], 1e-4, 1e-6) if near else three[name]), name


def test_the_answer_loss_is_the_models_mean_over_all_answer_tokens(moe, data):
    model, _ = moe()
    found = figures(model, data)["answer_loss"]
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for index in range(len(data)):
            picture = () if index != 1 else (1,)
            losses_A = model(**tiny.make_batch(data.processor, [index], picture)).token_losses_A
            losses, tokens = losses + losses_A.sum().item(), tokens + len(losses_A)
    assert found["tokens"] == tokens
    assert found["value"] == pytest.approx(losses / tokens, rel=1e-5)
    # Each is rounded to six digits, the larger two so by 5e-6.
    assert found["drop_top1_change"] == pytest.approx(found["drop_top1"] - found["value"], abs=2e-5)
    assert abs(found["drop_top1_change"]) > 1e-4


def changed(found):
    return [
        values["changed"]
        for part in found["parts"].values()
        for layer in part["layers"]
        for values in layer["kinds"].values()
    ]


def test_no_token_changes_its_experts_from_a_checkpoint_to_itself(moe, data):
    model, _ = moe()
    assert set(changed(figures(model, data, other=model))) == {0}
    assert set(changed(figures(model, data))) == {None}


def test_the_change_rate_is_the_share_of_tokens_with_another_set(moe, data):
    """The same model but for the projector's gate, so that only there all tokens' inputs agree."""
    model, _ = moe()
    other, _ = moe()
    other.load_state_dict(model.state_dict())
    (gate,) = (layer.router.gate for layer in other.moe_layers()["projector"])
    torch.nn.init.normal_(gate.weight)
    found = figures(model, data, other=other)["parts"]["projector"]["layers"][0]["kinds"]["image"]
    sets = []
    for each in (model, other):
        (layer,) = each.moe_layers()["projector"]
        chosen = []
        handle = layer.register_forward_hook(
            lambda layer, *_, chosen=chosen: chosen.extend(layer.routing.ids_TK.tolist())
        )
        with torch.no_grad():
            for index in (0, 2, 3, 4, 5):
                each(**tiny.make_batch(data.processor, [index]))
        handle.remove()
        sets.append([set(ids) for ids in chosen])
    differ = [mine != theirs for mine, theirs in zip(*sets, strict=True)]
    assert found["changed"] == pytest.approx(sum(differ) / len(differ))
    assert 0 < found["changed"] < 1


def test_all_is_every_kind_together(moe, data):
    model, _ = moe()
    layer = figures(model, data)["parts"]["language_model"]["layers"][1]
    kinds = layer["kinds"]
    assert list(kinds) == ["image", "text", "answer", "all"]
    counts = [kinds[kind]["tokens"] for kind in ("image", "text", "answer")]
    assert kinds["all"]["tokens"] == sum(counts)
    loads = torch.tensor([kinds[kind]["load"] for kind in ("image", "text", "answer")])
    weights = torch.tensor(counts)[:, None] / sum(counts)
    assert_close(torch.tensor(kinds["all"]["load"]), (loads * weights).sum(dim=0))
    assert layer["gap"] == pytest.approx(((loads[0] - loads[1]).abs().sum() / 2).item(), abs=1e-5)


def test_pictures_and_words_belong_to_the_rows(moe, data):
    model, _ = moe()
    found = figures(model, data)
    files = {"0.png", "2.png", "3.png", "4.png", "5.png"}
    for part in found["parts"].values():
        for layer in part["layers"]:
            for best in layer["patches"]:
                assert {patch["file"] for patch in best} <= files
                assert all(0 <= patch["patch"] < tiny.NUM_PATCHES for patch in best)
    assert [found["file"] for found in found["maps"]] == ["0.png", "3.png"]
    assert [len(found["first"]["language_model"]) for found in found["maps"]] == [2, 2]
    words = found["parts"]["language_model"]["layers"][0]["words"]
    text = "".join(json.dumps(data.row(i)) for i in range(6)) + "userassistant\n"
    assert {word["word"] for best in words for word in best} <= set(text)


def test_rows_without_pictures_leave_the_projector_without_figures(moe, tmp_path, processor):
    rows, images = tiny.write_rows(tmp_path, n=2, text_only=(0, 1))
    found = figures(moe()[0], LlavaDataset(rows, images, processor))
    assert found["parts"]["projector"]["layers"][0]["kinds"] == {}
    assert found["parts"]["language_model"]["layers"][0]["kinds"]["text"]["tokens"] > 0
    assert found["parts"]["language_model"]["layers"][0]["gap"] is None


@pytest.mark.parametrize(("rows", "chosen"), [(None, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 4]), (9, 6)])
def test_rows_are_spread_over_the_file(data, rows, chosen):
    assert choose_rows(data, rows) == (list(range(chosen)) if chosen == 6 else chosen)


@pytest.mark.parametrize(("rows", "batch_size"), [(0, 1), (1, 0)])
def test_no_rows_and_empty_batches_are_refused(data, rows, batch_size):
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        list(batches(data, data.processor, choose_rows(data, rows), batch_size))


def test_checkpoints_of_other_places_cannot_be_compared(moe, dense):
    model, _ = moe()
    for other in (moe(num_experts=8)[0], moe(layers=(1,))[0], moe(parts=("projector",))[0]):
        with pytest.raises(ValueError, match="other: the two checkpoints' experts cannot be"):
            check_comparable(model, other)
    with pytest.raises(ValueError, match="the checkpoint is dense"):
        check_comparable(dense()[0], None)
    other, _ = dense()
    upcycle_model(other, tiny.moe_configs(router="sigmoid"))
    check_comparable(model, other)  # another router is what the comparison is for


def test_plain_values_are_json(moe):
    assert plain({"a": [float("nan"), 1 / 3, True, None]}) == {"a": [None, 0.333333, True, None]}
