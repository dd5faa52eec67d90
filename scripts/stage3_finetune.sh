#!/usr/bin/env bash
# Stage 3: upcycle the dense model of stage 2 and fine-tune it with CompeteSMoE. Flags go to the
# recipe, scripts/recipes/stage3_finetune.yaml.
#
#   bash scripts/stage3_finetune.sh
#   bash scripts/stage3_finetune.sh --router topk --output_dir checkpoints/stage3-smoe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

if [[ ! -e checkpoints/stage2-moe ]]; then
  llava-compete upcycle checkpoints/stage2 --output checkpoints/stage2-moe \
    --parts language_model projector --num_experts 4 --top_k 2 --router compete --dtype bfloat16
fi
exec bash scripts/train.sh scripts/recipes/stage3_finetune.yaml --resume auto "$@"
