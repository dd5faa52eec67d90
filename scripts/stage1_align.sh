#!/usr/bin/env bash
# Stage 1: make the dense model, then align its projector. Flags after the script's name go to
# the recipe, scripts/recipes/stage1_align.yaml.
#
#   LANGUAGE_MODEL=microsoft/Phi-3.5-mini-instruct VISION=ViT-SO400M-14-SigLIP \
#     VISION_WEIGHTS=webli bash scripts/stage1_align.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

if [[ ! -e checkpoints/dense ]]; then
  llava-compete compose --output checkpoints/dense \
    --language_model "${LANGUAGE_MODEL:-microsoft/Phi-3.5-mini-instruct}" \
    --vision "${VISION:-ViT-SO400M-14-SigLIP}" \
    --vision_weights "${VISION_WEIGHTS:-webli}"
fi
exec bash scripts/train.sh scripts/recipes/stage1_align.yaml --resume auto "$@"
