"""States of a training checkpoint are read without running anything; export of a plain one."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load_file

from llava_compete.__main__ import main
from llava_compete.training.states import (
    OPTIMIZER,
    deepspeed_folder,
    open_states,
    refuse_foreign_pickles,
)
from tests import tiny


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def with_deepspeed(folder: Path, content: Any) -> Path:
    """A checkpoint with one DeepSpeed file."""
    (folder / "global_step3").mkdir(parents=True)
    (folder / "latest").write_text("global_step3")
    torch.save(content, folder / "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


SHAPES = {"a": (5, 3), "b": (7,), "c": ()}
FROZEN = {"d": (2, 5)}
GROUPS = (("a", "b"), ("c",))
KEYS = ("weight", "exp_avg", "exp_avg_sq")
Values = dict[str, dict[str, torch.Tensor]]


class Cut(NamedTuple):
    """A rank's flat vectors of a group, where the parameters begin in them, what lacks."""

    flats: dict[str, list[torch.Tensor]]
    places: dict[str, fragment_address]
    padding: int


def cut(values: Values, names: Sequence[str], stage: int, world_size: int) -> list[Cut]:
    """What each rank holds of a group, put down element by element."""
    ranks = [Cut({key: [] for key in KEYS}, {}, 0) for _ in range(world_size)]
    count = sum(values[name]["weight"].numel() for name in names)
    share, place = -(-count // world_size), 0
    for name in names:
        numel = values[name]["weight"].numel()
        own = -(-numel // world_size)
        for element in range(own * world_size if stage == 3 else numel):
            rank = ranks[element // own if stage == 3 else place // share]
            first = len(rank.flats["weight"])
            rank.places.setdefault(name, fragment_address(0, first)).numel += 1
            for key in KEYS:
                flat = values[name][key].flatten()
                value = flat[element] if element < numel else torch.tensor(float("nan"))
                rank.flats[key].append(value)
            place += 1
    if stage == 3:
        return ranks
    return [rank._replace(padding=share - len(rank.flats["weight"])) for rank in ranks]


def optimizer_file(groups: Sequence[Cut], stage: int, world_size: int) -> dict[str, Any]:
    """Under stages 1 and 2 the padding at the end is cut off the weights alone."""
    weights = [torch.tensor(group.flats["weight"]) for group in groups]
    states = {
        number: {"step": torch.tensor(3.0)}
        | {key: torch.tensor(group.flats[key] + [0.0] * group.padding) for key in KEYS[1:]}
        for number, group in enumerate(groups)
    }
    saved = {"zero_stage": ZeroStageEnum(stage), "loss_scaler": LossScaler(1.0)}
    if stage == 3:
        optimizer = {"optimizer_state_dict": {"state": states}}
        return saved | optimizer | {"fp32_flat_groups": weights, "partition_count": world_size}
    return saved | {
        "base_optimizer_state": {"state": states},
        "single_partition_of_fp32_groups": weights,
        "param_slice_mappings": [group.places for group in groups],
        "partition_count": [world_size] * len(groups),
    }


def write_shards(folder: Path, stage: int, world_size: int) -> Values:
    """What DeepSpeed writes; gives the float32 weights and states by parameter."""
    target = with_deepspeed(folder, {}) / "global_step3"
    whole = {name: {key: torch.randn(shape) for key in KEYS} for name, shape in SHAPES.items()}
    frozen = {name: torch.randn(shape) for name, shape in FROZEN.items()}
    ranks = list(zip(*(cut(whole, names, stage, world_size) for names in GROUPS), strict=True))
    for rank, groups in enumerate(ranks):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        saved = {"optimizer_state_dict": optimizer_file(groups, stage, world_size)}
        torch.save(saved, target / f"{name}_optim_states.pt")
        parts = dict(frozen)
        if stage == 3:
            for key, value in frozen.items():
                own = -(-value.numel() // world_size)
                padded = torch.cat([value.flatten(), torch.zeros(own * world_size)])
                parts[key] = padded[rank * own : (rank + 1) * own]
        model = {
            "module": dict.fromkeys([*SHAPES, *FROZEN], torch.zeros(0)) | {"e": torch.arange(3)},
            "param_shapes": [{key: torch.Size(SHAPES[key]) for key in names} for names in GROUPS],
            "frozen_param_shapes": {key: value.shape for key, value in frozen.items()},
            "frozen_param_fragments": parts,
        }
        torch.save(model, target / f"{name if stage == 3 else 'mp_rank_00'}_model_states.pt")
    return whole | {name: {"weight": value} for name, value in frozen.items()}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_shards_are_put_together(stage: int, world_size: int, tmp_path: Path) -> None:
    expected = write_shards(tmp_path / "shards", stage, world_size)
    states = open_states(tmp_path / "shards")
    assert states.layout == (stage, world_size)
    assert set(states.names) == {*SHAPES, *FROZEN, "e"}
    assert states.trained == set(SHAPES)
    for name, values in expected.items():
        assert states.weight(name).equal(values["weight"])
        found = states.optimizer_state(name)
        assert found.keys() == ({"exp_avg", "exp_avg_sq", "step"} if name in SHAPES else set())
        for key in found.keys() - {"step"}:
            assert found[key].equal(values[key])
    assert states.weight("e").equal(torch.arange(3))
    steps = [states.optimizer_state(name)["step"] for name in SHAPES]
    assert steps == [3.0] * len(SHAPES)
    assert len({step.data_ptr() for step in steps}) == len(SHAPES), "torch counts up in place"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    checkpoint = with_deepspeed(tmp_path / "bad", {})
    file = next((checkpoint / "global_step3").iterdir())
    torch.save({"x": Bomb(tmp_path / "ran")}, file, pickle_protocol=protocol)
    for reads in (refuse_foreign_pickles, open_states):
        with pytest.raises(ValueError, match="holds what a training does not write"):
            reads(checkpoint)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the test's pickle does nothing"


def test_what_deepspeed_writes_is_allowed(tmp_path: Path) -> None:
    content = [LossScaler(1.0), ZeroStageEnum.weights, fragment_address(numel=3, start=1)]
    refuse_foreign_pickles(with_deepspeed(tmp_path / "good", content))


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    checkpoint = with_deepspeed(tmp_path / "cut", torch.zeros(1000))
    file = next((checkpoint / "global_step3").iterdir())
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"optim_states\.pt is damaged"):
        refuse_foreign_pickles(checkpoint)


def test_latest_names_a_folder_beside_it(tmp_path: Path) -> None:
    checkpoint = with_deepspeed(tmp_path / "other", {})
    (checkpoint / "latest").write_text("../elsewhere")
    with pytest.raises(ValueError, match="which is none of"):
        deepspeed_folder(checkpoint)


def test_a_folder_of_another_name_which_deepspeed_would_read_is_none(tmp_path: Path) -> None:
    checkpoint = with_deepspeed(tmp_path / "named", {"x": Bomb(tmp_path / "ran")})
    (checkpoint / "global_step3").rename(checkpoint / "global_step_evil")
    (checkpoint / "latest").write_text("global_step_evil")
    with pytest.raises(ValueError, match="which is none of"):
        refuse_foreign_pickles(checkpoint)


def test_optimizers_parameters_are_counted(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "few"
    checkpoint.mkdir()
    for file in checkpoints["moe"].iterdir():
        (checkpoint / file.name).symlink_to(file)
    torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, checkpoint / OPTIMIZER)
    with pytest.raises(ValueError, match="has 2 parameters, this training has 3"):
        open_states(checkpoint, ["a", "b", "c"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_of_a_checkpoint_directory(
    dtype: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    main(["export", str(checkpoints["moe"]), str(tmp_path / "out"), "--dtype", dtype])
    exported = load_file(tmp_path / "out/model.safetensors")
    expected = load_file(checkpoints["moe"] / "model.safetensors")
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        assert exported[name].equal(value.to(getattr(torch, dtype)))


def test_export_overwrites_nothing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="exists and is not empty"):
        main(["export", str(checkpoints["moe"]), str(tmp_path)])


def test_export_keeps_router_state_in_its_dtype(tmp_path: Path) -> None:
    moe = tiny.make_checkpoint(tmp_path / "moe", parts=("projector",), router="expert_race")
    main(["export", str(moe), str(tmp_path / "out")])
    exported = load_file(tmp_path / "out/model.safetensors")
    states = [value.dtype for name, value in exported.items() if "state_" in name]
    assert states
    assert set(states) == {torch.float32}
