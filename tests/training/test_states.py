"""States of a training checkpoint are read without running anything; export of a plain one."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
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
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

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
