#!/usr/bin/env bash
# Compare routers: each trained from the same upcycled checkpoint on the same data, steps and seeds.
# Experts stand in the language model. Ends with a table of means and spreads over the seeds, and
# leaves report.md, compare.png and compare.json. The same command goes on where it was stopped.
#
#   bash scripts/compare_routers.sh --quick [FLAG...]
#     the quickstart's model and pictures on CPU, to outputs/compare/quick; makes what is missing
#   bash scripts/compare_routers.sh --tasks NAMES --data_root DIR [FLAG...]
#     LLaVA-665K from checkpoints/stage2 by scripts/recipes/compare.yaml on all GPUs, to
#     outputs/compare/llava; held-out questions of `python -m eval`
#
# Flags: --routers topk,compete (default: all)   --seeds 0 1 2   --workers 2 (jobs at once)
#   --out DIR   --recipe FILE   and keys of the recipe: --max_steps 100
#   (python -m experiments compare --help lists all)
set -euo pipefail
if [[ $* == *--help* || $* == -h ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  exit
fi
quick=""
if [[ ${1:-} == --quick ]]; then
  quick=yes
  shift
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

if [[ $quick ]]; then
  quickstart=outputs/quickstart
  cores=$(nproc) # before OMP_NUM_THREADS is set, which nproc heeds
  source scripts/lib/quickstart_stages.sh
  prepare_data
  aligned_model
  mkdir -p outputs/compare
  upcycled_model outputs/compare/upcycled --parts language_model --router topk
  # Costs are measured with all cores; the jobs share them out. A job takes about 5 GB.
  export OMP_NUM_THREADS=$cores
  exec python -m experiments compare --recipe scripts/recipes/compare_quick.yaml \
    --tasks stamps_short --asked kind --data_root "$cache" --image_folder "$cache" \
    --data_path "$cache/finetune.json" --out outputs/compare/quick \
    --workers $((cores < 4 ? cores : 4)) --discard_checkpoints "$@"
fi

if [[ ! -e checkpoints/stage2-moe-language ]]; then
  llava-compete upcycle checkpoints/stage2 --output checkpoints/stage2-moe-language \
    --parts language_model --num_experts 4 --top_k 2 --router topk --dtype bfloat16
fi
exec python -m experiments compare --recipe scripts/recipes/compare.yaml --launch \
  --out outputs/compare/llava "$@"
