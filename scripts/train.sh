#!/usr/bin/env bash
# Launch training: every GPU of this machine by DeepSpeed's launcher, or as the variables say.
#
#   bash scripts/train.sh RECIPE [--key value ...]
#   NUM_PROCESSES=4 bash scripts/train.sh ...               this many processes
#   HOSTFILE=hosts bash scripts/train.sh ...                several nodes, "name slots=8" a line
#   LAUNCHER=torchrun bash scripts/train.sh ...             torchrun instead; several nodes by
#     NNODES=2 RDZV_ENDPOINT=host:29500 on each of them
#   MASTER_PORT=29501 bash scripts/train.sh ...             a second run on the same machine
#   LAUNCHER=python bash scripts/train.sh ...               one process, no launcher
#
# SIGTERM or SIGUSR1 to it: the ranks save at the next step's end, and it ends by code 75. A step
# that hangs ends by code 76. docs/reliability.md
set -euo pipefail
if [[ -f ${1:-} ]]; then # the recipe may be named from where the user stands
  recipe=$(realpath "$1")
  set -- "$recipe" "${@:2}"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
# What DeepSpeed compiles belongs to an environment: two that share a folder build it over and over.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}
# By its path: a process that only hands signals on has no need to import the package.
launch=(python -P llava_compete/training/launch.py)

case ${LAUNCHER:-deepspeed} in
  deepspeed)
    words=(--no_local_rank)
    [[ -n ${HOSTFILE:-} ]] && words+=(--hostfile "$HOSTFILE")
    [[ -n ${NUM_PROCESSES:-} ]] && words+=(--num_gpus "$NUM_PROCESSES")
    [[ -n ${MASTER_PORT:-} ]] && words+=(--master_port "$MASTER_PORT")
    exec "${launch[@]}" deepspeed "${words[@]}" --module llava_compete train "$@"
    ;;
  torchrun)
    words=(--nproc-per-node "${NUM_PROCESSES:-gpu}" --master-port "${MASTER_PORT:-29500}")
    [[ -n ${NNODES:-} ]] && words+=(
      --nnodes "$NNODES" --rdzv-backend c10d
      --rdzv-endpoint "${RDZV_ENDPOINT:?NNODES needs RDZV_ENDPOINT=host:port}"
    )
    exec "${launch[@]}" torchrun "${words[@]}" -m llava_compete train "$@"
    ;;
  python)
    exec python -m llava_compete train "$@"
    ;;
  *)
    echo "train.sh: LAUNCHER=$LAUNCHER must be deepspeed, torchrun or python" >&2
    exit 2
    ;;
esac
