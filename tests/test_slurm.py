"""scripts/slurm/train.sbatch under a Slurm of four small scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.training.launches import REPOSITORY
from tests.training.recipes import argv, make_recipe

SCRIPT = REPOSITORY / "scripts" / "slurm" / "train.sbatch"

# srun: the tasks of this node with their environment; the highest of their codes. With SIGNAL_AT,
# every process of the tasks gets SIGUSR1 once that file is there, as --signal does it.
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] || exit 99
shift
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task setsid "$@" &
  tasks+=($!)
done
if [[ -n ${SIGNAL_AT:-} ]]; then
  until [[ -e $SIGNAL_AT ]]; do sleep 0.02; done
  for task in "${tasks[@]}"; do kill -USR1 -- "-$task"; done
fi
highest=0
for task in "${tasks[@]}"; do
  wait "$task"
  code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) [[ $2 == hostnames ]] && printf '%s\\n' localhost other ;;
  requeue) echo "$2" >>"$SLURM_SUBMIT_DIR/requeued" ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >>"$SLURM_SUBMIT_DIR/ranks"
exit $((RANK == 1 ? CODE : 0))
"""


@pytest.fixture
def submit(tmp_path: Path):
    """``submit(*words, **environment)``: sbatch, from a folder with .venv/bin in front."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)

    def write(name: str, text: str) -> None:
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    write("srun", SRUN)
    write("scontrol", SCONTROL)

    def run(*words: str, python: str, **environment: str) -> subprocess.CompletedProcess:
        write("python", python)
        job = {
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": "2",
        }
        return subprocess.run(
            ["bash", str(SCRIPT), *words],
            env={**os.environ, **job, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def requeued(tmp_path: Path) -> int:
    file = tmp_path / "requeued"
    return file.read_text().split().count("4242") if file.exists() else 0


def test_bash_reads_the_script() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_each_task_is_a_rank_of_one_training(submit, tmp_path: Path) -> None:
    done = submit("recipe.yaml", "--learning_rate", "1e-4", python=PYTHON, CODE="0")
    assert done.returncode == 0, done.stderr
    words = "-m llava_compete train recipe.yaml --resume auto --learning_rate 1e-4"
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == [
        f"{rank} {rank} 2 localhost 24242 {words}" for rank in range(2)
    ]
    assert requeued(tmp_path) == 0


@pytest.mark.parametrize(("code", "times"), [(75, 1), (138, 1), (1, 0), (76, 0), (137, 0)])
def test_the_code_says_whether_the_job_goes_back_into_the_queue(
    submit, tmp_path: Path, code: int, times: int
) -> None:
    assert submit("recipe.yaml", python=PYTHON, CODE=str(code)).returncode == code
    assert requeued(tmp_path) == times


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_and_continues(submit, tmp_path: Path) -> None:
    """The loader has a worker, which gets the signal, too."""
    checkpoint = tiny.make_checkpoint(tmp_path / "moe")
    recipe = make_recipe(
        tmp_path,
        checkpoint,
        n=4,
        per_device_train_batch_size=1,
        dataloader_num_workers=1,
        max_steps=60,
        save_strategy="steps",
        save_steps=10,
    )
    (file,), output = argv(recipe), tmp_path / "run"
    python = f"""#!/usr/bin/env bash
cd {REPOSITORY}
exec {sys.executable} "$@"
"""
    one = {"SLURM_NTASKS": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    first = submit(file, python=python, SIGNAL_AT=str(output / "checkpoint-10"), **one)
    assert first.returncode == 75, first.stderr[-3000:]
    assert requeued(tmp_path) == 1
    saved = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    assert 10 < saved < 60
    second = submit(file, python=python, **one)
    assert second.returncode == 0, second.stderr[-3000:]
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 61))
