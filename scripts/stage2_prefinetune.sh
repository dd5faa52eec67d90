#!/usr/bin/env bash
# Stage 2: train all parts of the dense model on captions. Flags go to the recipe,
# scripts/recipes/stage2_prefinetune.yaml.
#
#   bash scripts/stage2_prefinetune.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec bash scripts/train.sh scripts/recipes/stage2_prefinetune.yaml --resume auto "$@"
