#!/usr/bin/env bash
# Ask a checkpoint the questions of benchmarks and score its answers, on every GPU of this machine.
#
#   bash scripts/evaluate.sh --checkpoint DIR --tasks pope,gqa --data_root DIR --out RUN [--key value ...]
#   NUM_PROCESSES=4 bash scripts/evaluate.sh ...            this many processes
#   NNODES=2 RDZV_ENDPOINT=host:29500 bash scripts/evaluate.sh ...   on each of several nodes that
#     share the directory RUN
#   RESTARTS=3 bash scripts/evaluate.sh ...                 start over so often where a process dies
#
# The same command goes on from what an interrupted run has answered, with any number of processes.
# Paths are meant from where the user stands.
set -euo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
export PATH="$root/.venv/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false

if [[ -z ${NUM_PROCESSES:-} ]]; then
  NUM_PROCESSES=$(python -c "import torch; print(max(torch.cuda.device_count(), 1))")
fi
if [[ $NUM_PROCESSES == 1 && -z ${NNODES:-} ]]; then
  exec python -m eval run "$@"
fi
words=(--nproc-per-node "$NUM_PROCESSES" --max-restarts "${RESTARTS:-0}")
if [[ -n ${NNODES:-} ]]; then
  words+=(
    --nnodes "$NNODES" --rdzv-backend c10d
    --rdzv-endpoint "${RDZV_ENDPOINT:?NNODES needs RDZV_ENDPOINT=host:port}"
  )
else
  words+=(--standalone)
fi
exec torchrun "${words[@]}" -m eval run "$@"
