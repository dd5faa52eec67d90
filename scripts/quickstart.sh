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

cache=${LLAVA_COMPETE_CACHE:-$HOME/.cache/llava_compete/quickstart}
out=${1:-outputs/quickstart}
# Two processes on the CPU, also where there is a GPU, each with half of the cores.
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=$(($(nproc) > 2 ? $(nproc) / 2 : 1))
begun=$SECONDS

stage() { # stage RESULT TITLE COMMAND...: run COMMAND unless RESULT is there
  local result=$1 title=$2
  shift 2
  if [[ -e $result ]]; then
    echo "== $title: done before ($result)"
    return
  fi
  echo "== $title"
  local start=$SECONDS
  "$@"
  echo "== $title: $((SECONDS - start)) s"
}

train() { # train RECIPE KEY VALUE...: two processes; what is left of an interrupted run goes
  local recipe=$1 output=$2
  shift 2
  rm -rf "$output" "$out/eval" # answers of another model
  NUM_PROCESSES=2 bash scripts/train.sh "$recipe" --output_dir "$output" \
    --image_folder "$cache" "$@"
}

mkdir -p "$out"
echo "== real weights, pictures and questions, in $cache"
python -m data_prep quickstart --root "$cache" --pictures "${PICTURES:-auto}"
begun_work=$SECONDS

stage "$out/dense" "compose" llava-compete compose --output "$out/dense" \
  --language_model "$cache/SmolLM2-135M-Instruct" \
  --vision timm/tf_efficientnet_lite0 --vision_weights "$cache/tf_efficientnet_lite0.safetensors" \
  --vision_layer final --image_size 160 \
  --calibration_data "$cache/align.json" --image_folder "$cache"

stage "$out/aligned/train_results.json" "align the projector" \
  train scripts/recipes/quickstart_align.yaml "$out/aligned" \
  --checkpoint "$out/dense" --data_path "$cache/align.json"

stage "$out/upcycled" "upcycle into experts" llava-compete upcycle "$out/aligned" \
  --output "$out/upcycled" --layers 2 5 8 11 14 17 20 23 26 29 --perturbation 0.02

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
